import pytest
from faults.lab import SOON, Lab
from servers import wait_until

@pytest.fixture
def lab(server, tmp_path):
    with Lab(server.url, tmp_path) as lab:
        yield lab

@pytest.mark.parametrize("task", ["add", "aadd"])
def test_unknown_task_is_released_although_a_worker_that_does_not_know_it_listens_too(lab, task):
    result = getattr(lab.tasks, task).delay(20, 1)
    with lab.worker("-c", "1", tasks="noop"):
        wait_until(lambda: lab.status().parked == 1, "parked", seconds=SOON)
        with lab.worker("-c", "1"):
            assert result.wait(SOON) == 21
