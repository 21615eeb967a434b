"""One file a published system.

Each defines SETTINGS, its changes to RunConfig's defaults; demonstrations(run), what is imitated
first; and improve(run), what comes after.
"""
