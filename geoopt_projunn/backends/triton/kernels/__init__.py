"""The kernels. All are of real numbers: :mod:`.layout` says how complex matrices become real."""
