import subprocess
import sys
from types import ModuleType

import pytest

from metadnas_ext.data import _torchvision


@pytest.fixture(autouse=True)
def _forget_the_import():
    _torchvision.torchvision_datasets.cache_clear()
    yield
    _torchvision.torchvision_datasets.cache_clear()


def test_datasets_are_there_in_a_fresh_process_and_only_when_asked_for():
    code = (
        "import sys, metadnas_ext.data\n"
        "assert 'torchvision' not in sys.modules\n"
        "from metadnas_ext.data._torchvision import torchvision_datasets\n"
        "assert torchvision_datasets().CIFAR10.__name__ == 'CIFAR10'\n"
        "import torchvision.transforms\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_trap_is_defused_once_and_the_import_repeated(monkeypatch):
    found = ModuleType("torchvision.datasets")
    answers = [RuntimeError("operator torchvision::nms does not exist"), found]
    defined = []

    class Library:
        def __init__(self, *arguments):
            defined.append(arguments)

        def define(self, schema):
            defined.append(schema)

    def import_module(name):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(_torchvision.importlib, "import_module", import_module)
    monkeypatch.setattr(_torchvision.torch.library, "Library", Library)
    monkeypatch.setattr(_torchvision, "_kept", [])
    assert _torchvision.torchvision_datasets() is found
    assert _torchvision.torchvision_datasets() is found
    signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    assert defined == [("torchvision", "FRAGMENT"), "nms" + signature, "qnms" + signature]
    assert len(_torchvision._kept) == 1


@pytest.mark.parametrize("error", [RuntimeError("operator x does not exist"), ImportError("none")])
def test_other_errors_of_the_import_are_passed_on(monkeypatch, error):
    def import_module(name):
        raise error

    monkeypatch.setattr(_torchvision.importlib, "import_module", import_module)
    monkeypatch.setattr(_torchvision, "_kept", [])
    with pytest.raises(type(error), match=str(error)):
        _torchvision.torchvision_datasets()
    assert _torchvision._kept == []
