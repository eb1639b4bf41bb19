import pytest

pytest.importorskip("flwr", reason="flwr is not installed (extra flower)")
