"""What the commands of `hf-sharp` do, one file each."""
