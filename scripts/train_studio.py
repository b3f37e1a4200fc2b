"""Registers Train Studio with the WebUI; everything else is in extensions_lib."""

import logging
import sys

NEEDED_PYTHON = (3, 10)


def _register() -> object:
    """Register our callbacks and return the script that is asked before every picture; None if that cannot be."""
    log = logging.getLogger("train_studio")
    if sys.version_info < NEEDED_PYTHON:
        log.error("Train Studio needs Python 3.10 or newer; this WebUI runs on %s.", sys.version.split()[0])
        return None
    try:
        from extensions_lib.host import extension

        extension.register()
        return extension.generation_script()
    except Exception as error:
        log.error("Train Studio is not available: %s: %s", type(error).__name__, error)
        log.debug("Where it happened:", exc_info=True)
        return None


TrainStudioScript = _register()
