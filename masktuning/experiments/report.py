def write_report(comparison, folder):
    return str(
        {k: {s: round(o.dev, 3) for s, o in v.items()} for k, v in comparison.outcomes.items()}
    )
