// Sorting and finding. Without it the page is whole, only unsorted.
"use strict";
document.documentElement.classList.add("scripted");

const figureOf = (row, column) => {
  const text = row.cells[column].textContent.trim();
  const number = Number.parseFloat(text);
  return Number.isNaN(number) ? text : number;
};

const compare = (one, other) => {
  const unknown = (value) => value === "" || value === "-";
  if (unknown(one) || unknown(other)) return unknown(one) - unknown(other);
  return typeof one === "number" && typeof other === "number" ? one - other : String(one).localeCompare(String(other));
};

const sort = (header, column) => {
  const descending = header.getAttribute("aria-sort") === "ascending";
  const body = header.closest("table").tBodies[0];
  const rows = [...body.rows].sort((one, other) => compare(figureOf(one, column), figureOf(other, column)));
  for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  body.append(...(descending ? rows.reverse() : rows));
};

for (const table of document.querySelectorAll(".wide > table:not(.heat table)")) {
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    button.addEventListener("click", () => sort(header, column));
    header.append(button);
  });
}

const find = document.getElementById("find");
find?.addEventListener("input", () => {
  const words = find.value.toLowerCase().split(/\s+/);
  const cells = [...document.querySelectorAll("details.cell")];
  for (const cell of cells) cell.hidden = !words.every((word) => cell.querySelector("article").id.includes(word));
  document.getElementById("found").textContent = `${cells.filter((cell) => !cell.hidden).length} of ${cells.length} cells`;
});

// A link opens what it leads to, also a cell that a search has hidden; paper has all sections.
const reveal = () => {
  const target = document.getElementById(location.hash.slice(1));
  for (let at = target; at; at = at.parentElement) {
    if (at.tagName === "DETAILS") [at.hidden, at.open] = [false, true];
  }
  target?.scrollIntoView();
};
addEventListener("hashchange", reveal);
addEventListener("beforeprint", () => document.querySelectorAll("details.section").forEach((one) => { one.open = true; }));
reveal();
