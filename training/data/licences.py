"""Where data sets come from and on which terms they may be used, for the cards of models."""

from collections.abc import Mapping

__all__ = ["data_note"]

SPLITS = (
    "Of the {train:,} official training images 2,500 were set aside for validation and 2,500 for "
    "calibration by a fixed rule; all others were trained on. The {test:,} official test images "
    "serve final figures only."
)
NOTES: Mapping[str, str] = {
    "mnist": (
        "MNIST (LeCun, Bottou, Bengio & Haffner 1998), handwritten digits from NIST's "
        "collections. "
        + SPLITS.format(train=60_000, test=10_000)
        + " Licence: copyright Yann LeCun and Corinna Cortes, Creative Commons "
        "Attribution-ShareAlike 3.0, as its distributors state it."
    ),
    "mnist-static": (
        "MNIST (LeCun, Bottou, Bengio & Haffner 1998), each digit binarised once: a pixel is white "
        "with its grey level as the chance, drawn with a fixed seed (another draw than Larochelle "
        "& Murray's of 2011). "
        + SPLITS.format(train=60_000, test=10_000)
        + " Licence: as MNIST's, Creative Commons Attribution-ShareAlike 3.0."
    ),
    "fashion-mnist": (
        "Fashion-MNIST (Xiao, Rasul & Vollgraf 2017, arXiv:1708.07747), Zalando's article images. "
        + SPLITS.format(train=60_000, test=10_000)
        + " Licence: MIT, copyright Zalando SE."
    ),
    "cifar10": (
        "CIFAR-10 (Krizhevsky 2009), a labelled part of the 80 Million Tiny Images, which were "
        "collected from the web and withdrawn by their makers in 2020. "
        + SPLITS.format(train=50_000, test=10_000)
        + " Images are known by their content (SHA-256), whatever the order of the files. "
        "Licence: none is stated; its authors ask to cite the technical report. The rights in "
        "single photographs are not cleared."
    ),
}
OTHERS = (
    "Images of whoever trained this model; their licence and the rights of those they show are "
    "theirs to state. A file's name decided its split, and copies of an image stayed in one split."
)


def data_note(name: str) -> str:
    """What a card says of the data set `name`: origin, splits, licence."""
    return NOTES.get(name, OTHERS)
