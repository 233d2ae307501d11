"""What a kernel does wrong apart from its numbers."""


class KernelFault(Exception):
    """A kernel raised, hung, died, or returned what is no result; the message says which, and is the verdict."""
