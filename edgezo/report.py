def write_report(run, extra=None):
    return None
