"""Compares training on meshes of 4 and 8 devices; a program of its own, as it needs eight virtual devices."""

from tests import test_sharding

if __name__ == "__main__":
    test_sharding.check_meshes(
        [
            (4, "tensor:4", 4),
            (8, "data:8", 1),
            (8, "fsdp:8", 8),
            (8, "data:2,fsdp:2,tensor:2", 4),
        ]
    )
