"""What the machine says of itself."""

import psutil

from stages.common.memory import free_memory_bytes


def test_free_memory_is_the_containers_where_that_is_less(tmp_path):
    assert 0 < free_memory_bytes(tmp_path) <= psutil.virtual_memory().total  # no control group here
    (tmp_path / "memory.current").write_text("600\n")
    (tmp_path / "memory.stat").write_text("anon 400\ninactive_file 200\n")
    (tmp_path / "memory.max").write_text("1000\n")
    assert free_memory_bytes(tmp_path) == 600  # of the file cache, what was not used lately can be had
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory_bytes(tmp_path) > 2**20
