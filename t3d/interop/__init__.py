"""Ways into other programs, each an optional extra."""
