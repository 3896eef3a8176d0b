"""What runs inside the sandbox, as scripts of a bare interpreter: nothing here imports anything of ours."""
