"""Read values from a result of eval."""


def metric_value(result, name, mode="official"):
    """Return the value of a metric such as `mean/f1`, None where it is undefined."""
    metric = result["metrics"][mode]
    for part in name.split("/"):
        metric = metric[part]
    return None if metric is None else metric["value"]


def robust_value(result, name):
    """Return the value of a robust metric."""
    return metric_value(result, name, "robust")


def notes_of(result):
    """Return eval's notes on the file of answers as one text."""
    return " | ".join(result["answers"]["notes"])
