"""What torch says about the precision of float32 products, by both of its interfaces."""

import torch

backends = torch.backends
# Of torch 2.9 and later.
HAS_NEW = hasattr(backends.cuda.matmul, "fp32_precision")
NEW = {}
if HAS_NEW:
    NEW = {
        "general": (backends, "fp32_precision"),
        "cuda": (backends.cudnn, "fp32_precision"),
        "cuda.matmul": (backends.cuda.matmul, "fp32_precision"),
        "cudnn.conv": (backends.cudnn.conv, "fp32_precision"),
        "cudnn.rnn": (backends.cudnn.rnn, "fp32_precision"),
        "mkldnn": (backends.mkldnn, "fp32_precision"),
        "mkldnn.matmul": (backends.mkldnn.matmul, "fp32_precision"),
    }
OLD = {
    "cuda.matmul.allow_tf32": (backends.cuda.matmul, "allow_tf32"),
    "cudnn.allow_tf32": (backends.cudnn, "allow_tf32"),
}


def use(name, value):
    """Set one of them, by its name."""
    if name == "float32_matmul_precision":
        torch.set_float32_matmul_precision(value)
    else:
        owner, attribute = {**NEW, **OLD}[name]
        setattr(owner, attribute, value)


# What a user may write to reduce the precision of products or recurrences, and to raise it.
WAYS = [
    ("float32_matmul_precision", "high"),
    ("float32_matmul_precision", "medium"),
    ("float32_matmul_precision", "highest"),
    ("cuda.matmul.allow_tf32", True),
    ("cudnn.allow_tf32", True),
    ("cudnn.allow_tf32", False),
    ("general", "tf32"),
    ("general", "ieee"),
    ("cuda", "tf32"),
    ("cuda.matmul", "tf32"),
    ("cudnn.rnn", "tf32"),
    ("cudnn.rnn", "ieee"),
    ("cudnn.conv", "ieee"),
    ("mkldnn", "tf32"),
    ("mkldnn.matmul", "bf16"),
    ("mkldnn.matmul", "tf32"),
]
REDUCED = [
    ("float32_matmul_precision", "high"),
    ("float32_matmul_precision", "medium"),
    ("cuda.matmul.allow_tf32", True),
]
if HAS_NEW:
    REDUCED += [
        ("general", "tf32"),
        ("cuda", "tf32"),
        ("cuda.matmul", "tf32"),
        ("mkldnn.matmul", "bf16"),
        ("mkldnn.matmul", "tf32"),
    ]


def forget():
    """Leave the precision of products as it is when torch starts."""
    torch.set_float32_matmul_precision("highest")
    for name in {"general", "cuda", "cuda.matmul", "mkldnn.matmul"} & NEW.keys():
        use(name, "none")
    # `torch.backends.cudnn.flags` sets it for convolutions and recurrences apart, of which one may
    # be left at "none".
    use("cudnn.allow_tf32", True)


def _read(read):
    try:
        return read()
    except RuntimeError as error:
        # Torch refuses to read what contradicts the other interface.
        return str(error)


def snapshot():
    """Return all that can be read, a refusal as its message."""
    read = {
        name: _read(lambda owner=owner, attribute=attribute: getattr(owner, attribute))
        for name, (owner, attribute) in {**NEW, **OLD}.items()
    }
    return {"float32_matmul_precision": _read(torch.get_float32_matmul_precision), **read}


def recurrences_are_full():
    if not HAS_NEW:
        return not backends.cudnn.allow_tf32
    return backends.cudnn.rnn.fp32_precision in ("ieee", "none")


def products_are_full():
    if not HAS_NEW:
        return torch.get_float32_matmul_precision() == "highest"
    full = ("ieee", "none")
    return all(o.fp32_precision in full for o in (backends.cuda.matmul, backends.mkldnn.matmul))
