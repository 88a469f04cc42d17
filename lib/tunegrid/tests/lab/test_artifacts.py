"""Adapters that older releases of PEFT saved: the installed one serves them alike, and a release that does not is seen."""

import json
import subprocess

import pytest
import torch
from peft.tuners.oft.layer import OFTRotationModule

from tunegrid.errors import InputError
from tunegrid.grid.zoo import METHODS
from tunegrid.lab import artifacts, record_adapters
from tunegrid.lab.artifacts import ARTIFACTS, INDEX, NOT_RECORDED, RECORDED, served
from tunegrid.lab.record_adapters import commit_of

RELEASES = sorted(ARTIFACTS.glob("peft-*"))
BY_ID = {artifact.id: artifact for artifact in RECORDED}
KEPT = [
    pytest.param(release, BY_ID[name], id=f"{release.name}-{name}")
    for release in RELEASES
    for name in json.loads((release / INDEX).read_text())["adapters"]
]
SIZE = 1.5 * 2**20


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize(("release", "artifact"), KEPT)
def test_an_adapter_of_an_older_release_is_served_alike(release, artifact):
    tolerance, answer = artifact.tolerance, served(artifact, release)
    alike = answer.apart <= tolerance.apart and answer.text
    if artifact.known:
        assert not alike, f"{artifact.id} is served alike again: drop what is known of it, {artifact.known}"
    else:
        assert alike, f"{artifact.id} of {release.name} is served {answer.apart:.1e} apart; allowed is {tolerance}"


@pytest.mark.parametrize(("release", "artifact"), KEPT)
def test_each_adapter_changes_the_answers_by_far_more_than_the_tolerance(release, artifact):
    """Else one that is not applied at all would pass."""
    index = json.loads((release / INDEX).read_text())["adapters"][artifact.id]
    assert index["changes"] > 5 * artifact.tolerance.apart


def test_every_method_of_the_zoo_is_recorded_or_it_is_said_why_not():
    assert {artifact.method.id for artifact in RECORDED} - {"oftseries"} | set(NOT_RECORDED) == {one.id for one in METHODS}
    assert RELEASES


def test_files_are_small_and_hold_no_pickle_and_no_path():
    files = [path for path in ARTIFACTS.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert sum(path.stat().st_size for path in files) < SIZE
    assert [path for path in files if path.suffix == ".json" and "/" in path.read_text().replace("application/", "")] == []


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.name)
def test_a_release_says_what_it_was_recorded_with(release):
    index = json.loads((release / INDEX).read_text())
    assert f"peft-{index['versions']['peft']}" == release.name
    assert len(index["commit"]) == 40
    assert set(index["adapters"]) | set(index["missing"]) == set(BY_ID)


# Releases that serve them otherwise


def first_release_with(name):
    return next(release for release in RELEASES if (release / name).is_dir())


def series_of_0_17(self, weight, block_size, *options):
    """The last term counts twice, as the others do; since PEFT 0.18 it counts once."""
    skew = self._pytorch_skew_symmetric(weight, block_size)
    unit = torch.eye(block_size).repeat(len(weight), 1, 1)
    powers = [skew, skew @ skew, skew @ skew @ skew, skew @ skew @ skew @ skew]
    return unit + 2.0 * sum(powers)


def inverse_rotation(self, weight, block_size, *options):
    """The way back."""
    skew = self._pytorch_skew_symmetric(weight, block_size)
    unit = torch.eye(block_size).repeat(len(weight), 1, 1)
    return torch.linalg.solve(unit - skew, unit + skew, left=False)


@pytest.mark.parametrize(
    ("name", "rotation"), [("oftseries", series_of_0_17), ("oft", inverse_rotation), ("qoft", inverse_rotation)]
)
def test_another_parameterisation_of_oft_is_seen(monkeypatch, name, rotation):
    monkeypatch.setattr(OFTRotationModule, "_cayley_batch", rotation)
    answer = served(BY_ID[name], first_release_with(name))
    assert answer.apart > BY_ID[name].tolerance.apart


def test_a_scale_that_is_read_otherwise_is_seen(monkeypatch):
    """rsLoRA's alpha / sqrt(2) in the place of alpha / 2, or the other way round."""
    config = json.loads((first_release_with("rslora") / "rslora" / "adapter_config.json").read_text())
    assert config["use_rslora"] is True
    load = artifacts.peft.PeftModel.from_pretrained

    def plainly_scaled(base, folder):
        model = load(base, folder)
        for layer in model.modules():
            if hasattr(layer, "lora_A") and "default" in layer.scaling:
                layer.scaling["default"] = config["lora_alpha"] / config["r"]
        return model

    monkeypatch.setattr(artifacts.peft.PeftModel, "from_pretrained", plainly_scaled)
    answer = served(BY_ID["rslora"], first_release_with("rslora"))
    assert answer.apart > BY_ID["rslora"].tolerance.apart


def test_another_backbone_is_no_difference_of_a_release(monkeypatch):
    monkeypatch.setattr(artifacts, "digest_of", lambda cell: "0" * 16)
    with pytest.raises(InputError, match="lora was recorded over other weights of gpt2-micro: "):
        served(BY_ID["lora"], first_release_with("lora"))


# Recording


@pytest.fixture
def checkout(tmp_path):
    def git(*words):
        names = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", "-C", str(tmp_path), *names, *words], check=True, capture_output=True)

    git("init")
    (tmp_path / "code.py").write_text("a = 1\n")
    git("add", ".")
    git("commit", "-m", "first")
    return tmp_path


def test_a_tree_with_changes_is_refused_unless_they_are_recorded_adapters(checkout):
    recorded = checkout / "reports" / "artifacts"
    recorded.mkdir(parents=True)
    (recorded / "adapters.json").write_text("{}")
    assert len(commit_of(checkout, recorded)) == 40
    (checkout / "code.py").write_text("a = 2\n")
    with pytest.raises(InputError, match=r"uncommitted changes, as of code\.py"):
        commit_of(checkout, recorded)


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(InputError, match="no checkout whose commit git tells"):
        commit_of(tmp_path, tmp_path / "reports")


def test_a_package_that_says_another_version_than_its_code_is_refused(monkeypatch):
    monkeypatch.setattr(record_adapters, "versions", lambda: {"peft": "0.19.1"})
    with pytest.raises(InputError, match=r"but its package says 0\.19\.1"):
        record_adapters.peft_version()
