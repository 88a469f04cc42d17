// Sorting, filtering and finding. Without it the page is whole, only unsorted.
"use strict";
document.documentElement.classList.add("scripted");

// A cell's figure for sorting: what data-value says, else its text.
const figureOf = (row, column) => {
  const cell = row.children[column];
  const text = (cell.dataset.value ?? cell.textContent).trim();
  const number = Number.parseFloat(text.replaceAll(",", ""));
  return Number.isNaN(number) ? text : number;
};

const compare = (one, other) => {
  const unknown = (value) => value === "" || value === "–";
  if (unknown(one) || unknown(other)) return unknown(one) - unknown(other);
  if (typeof one === "number" && typeof other === "number") return one - other;
  return String(one).localeCompare(String(other));
};

const sort = (header, column) => {
  const descending = header.getAttribute("aria-sort") === "ascending";
  const body = header.closest("table").tBodies[0];
  const rows = [...body.rows].sort((one, other) => compare(figureOf(one, column), figureOf(other, column)));
  for (const other of header.parentElement.children) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  body.append(...(descending ? rows.reverse() : rows));
};

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    if (header.tagName !== "TH") return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    button.addEventListener("click", () => sort(header, column));
    header.append(button);
  });
}

for (const filter of document.querySelectorAll(".filter")) {
  filter.addEventListener("change", (event) => {
    for (const one of filter.parentElement.querySelectorAll("[data-change]")) {
      one.hidden = event.target.value !== "all" && one.dataset.change !== event.target.value;
    }
  });
}

const find = document.getElementById("find");
find?.addEventListener("input", () => {
  const words = find.value.toLowerCase().split(/\s+/);
  const cells = [...document.querySelectorAll("details.cell")];
  for (const cell of cells) cell.hidden = !words.every((word) => cell.querySelector("article").id.includes(word));
  document.getElementById("found").textContent = `${cells.filter((cell) => !cell.hidden).length} of ${cells.length} cells`;
});

// A permalink opens its cell, also one that a search has hidden. Browsers of today open it without this.
const reveal = () => {
  const target = document.getElementById(location.hash.slice(1));
  const cell = target?.closest("details.cell");
  if (cell && (cell.hidden || !cell.open)) {
    cell.hidden = false;
    cell.open = true;
    cell.scrollIntoView();
  }
};
addEventListener("hashchange", reveal);
reveal();
