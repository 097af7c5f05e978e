"""Other people's files, and what is noticed of their damage."""

import pytest
import torch

from imgtool.errors import CheckpointError
from imgtool.training.reader import read_foreign


@pytest.mark.parametrize("has_sums", [True, False])
def test_a_flipped_bit_of_a_foreign_file_is_noticed_where_it_has_checksums(tmp_path, has_sums):
    path, weight = tmp_path / "iter_000001.pt", torch.arange(1000.0)
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(has_sums)
    try:
        torch.save({"weight": weight}, path)
    finally:
        torch.serialization.set_crc32_options(before)
    assert torch.equal(read_foreign(path)["weight"], weight)
    data = bytearray(path.read_bytes())
    data[data.index(weight.numpy().tobytes()) + 400] ^= 1
    path.write_bytes(data)
    if has_sums:
        with pytest.raises(CheckpointError, match="data/0 in it is not what was written"):
            read_foreign(path)
    else:
        assert not torch.equal(read_foreign(path)["weight"], weight)
