def dry_run(request):
    return ""
