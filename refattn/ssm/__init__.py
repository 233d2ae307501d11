"""State spaces: S4D, Mamba's selective scan, Mamba-2's SSD, and the short convolution beside them; a file each."""
