"""Tables of plants are filled by decorators."""

import pytest

from benchmarks.proof.plants.plant import Table


def test_a_plant_is_a_row_for_each_of_its_cells():
    table = Table()

    @table.plant("A1", "nothing learns", "classic", ("bert_sa_lora", "t5_qa_sft"), "bound", ranks=2)
    def broken(planting):
        return "broken"

    assert [plant.test_id for plant in table] == [
        "quick-A1-bert_sa_lora-2ranks",
        "quick-A1-t5_qa_sft-2ranks",
    ]
    assert table[0].broken_by(None) == broken(None) == "broken"


def test_an_id_that_a_cell_has_twice_is_an_error():
    table = Table()
    add = table.plant("A1", "nothing learns", "classic", "bert_sa_lora", "bound")
    add(print)
    with pytest.raises(ValueError, match="two plants are named quick-A1-bert_sa_lora"):
        add(print)
