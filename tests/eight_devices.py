"""The same training on a mesh of 8 virtual devices; a program, as it needs eight of them."""

from tests import test_sharding

if __name__ == "__main__":
    test_sharding.check_meshes(
        [
            (8, "data:2,fsdp:2,tensor:2", 4),
        ]
    )
