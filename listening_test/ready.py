"""The study that the app offers: the one that comes with it, or a prepared one of one's own.

    studies = ensure_ready_study(data_dir)     prepared in the background at its first start
    offer_study(study_dir, studies)            opened in the background

Both return at once.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from listening_test.decode import sources_sha256
from listening_test.hosting import Studies
from listening_test.offsite import NotCopied
from listening_test.prepared import NotPrepared, load_prepared
from listening_test.stimuli import prepare
from listening_test.study import Study, load_study

READY_STUDY = Path(__file__).parent / "ready_study.yaml"
# Folder of a prepared study, to offer in the place of the ready one.
STUDY_VARIABLE = "LISTENING_TEST_STUDY"
_AGAIN_S = 60.0
log = logging.getLogger(__name__)


def ensure_ready_study(data_dir: Path, studies: Studies | None = None) -> Studies:
    """Announce the ready study, prepare its clips where they are absent, then open it.

    Args:
        data_dir: its folder is DATA_DIR/<study id>-<version>. The version tells study file and
            model apart, so that ratings of different clips never mix.
        studies: registry to add it to; a new one if None.

    Decoding happens in a thread of its own, before the study opens and never during a test.
    """
    studies = studies or Studies()
    study = load_study(READY_STUDY)
    studies.announce(study.id, study.title)
    thread = threading.Thread(
        target=_prepare, args=(study, data_dir, studies), name="ready-study", daemon=True
    )
    thread.start()
    return studies


def offer_study(study_dir: Path, studies: Studies) -> None:
    """Announce a study that `prepare` made, and open it; ratings go to its own folder.

    Raises:
        NotPrepared: the folder holds none.
    """
    study = load_prepared(study_dir)
    studies.announce(study.study_id, study.title)
    arguments = (study.study_id, study.title, study_dir, studies)
    threading.Thread(target=_offer, args=arguments, name="own-study", daemon=True).start()
    studies.watch()


def _offer(study_id: str, title: str, study_dir: Path, studies: Studies) -> None:
    try:
        _open(study_id, title, study_dir, studies)
    except Exception as error:  # the app lives on without this study, and the page says why
        log.exception("the study in %s cannot be offered", study_dir)
        studies.fail(study_id, str(error))


def _prepare(study: Study, data_dir: Path, studies: Studies) -> None:
    try:
        version = f"{study.sha256[:8]}-{sources_sha256(study.model)[:8]}"
        study_dir = data_dir / f"{study.id}-{version}"
        if not _is_prepared(study_dir, study):
            log.info("prepared %s", prepare(study, study_dir))
        _open(study.id, study.title, study_dir, studies)
    except Exception as error:  # the app lives on without this study, and the page says why
        log.exception("the ready study cannot be offered")
        studies.fail(study.id, str(error))


def _open(study_id: str, title: str, study_dir: Path, studies: Studies) -> None:
    """Open it once its ratings can be copied; nobody is there who could start it again."""
    while True:
        try:
            studies.open(study_dir)
        except NotCopied as error:
            studies.announce(study_id, title, str(error))
            time.sleep(_AGAIN_S)
        else:
            return


def _is_prepared(study_dir: Path, study: Study) -> bool:
    try:
        return load_prepared(study_dir).config_sha256 == study.sha256
    except NotPrepared:
        return False
