"""How many of a corpus' speakers or utterances a drawn validation and test set hold."""


def subset_sizes(number: int, *, valid_fraction: float, test_fraction: float) -> dict[str, int]:
    """Sizes of the validation and the test set that are drawn from ``number`` things.

    Parameters
    ----------
    number : of the speakers or utterances.
    valid_fraction, test_fraction : shares in [0, 1); at least one unless 0.

    Returns
    -------
    Sizes of "valid" and "test"; together they may be ``number`` or more where that is small.

    Raises
    ------
    ValueError : if a share is negative or they leave nothing to train on.
    """
    fractions = {"valid": valid_fraction, "test": test_fraction}
    if min(fractions.values()) < 0 or sum(fractions.values()) >= 1:
        raise ValueError(f"valid_fraction and test_fraction must leave some to train: {fractions}")
    return {k: max(1, round(share * number)) if share else 0 for k, share in fractions.items()}
