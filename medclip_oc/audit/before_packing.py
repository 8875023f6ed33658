"""The audit that `make_shards` runs before it packs."""

from ..config.packing import MakeShardsConfig
from ..errors import InputError, WorkError
from ..models.clip import token_counter
from ..packing.sources import Source
from .audit import Audit, audit
from .hashing import require_libraries
from .leaks import Without


def audit_source(source: Source, config: MakeShardsConfig, workers: int) -> tuple[Source, Audit]:
    """Audit a source, and print what was found.

    Returns:
        What is to be packed (with --drop-leaks, the source without them), and the audit. With
        --audit-only it is written; else that is for the caller: packing may have to refuse or clear
        the folder first.

    Raises:
        InputError, WorkError: the folder is a file, a library is missing, or the audit fails.
    """
    out = config.path("out")
    if out.exists() and not out.is_dir():  # now rather than after all the reading
        raise InputError(f"{out}: not a folder")
    require_libraries()
    try:
        counter = token_counter(config.audit_arch)
    except (InputError, WorkError) as error:
        raise type(error)(str(error).replace("model.arch", "--audit-arch")) from None
    audited = audit(
        source,
        arch=config.audit_arch,
        token_counter=counter,
        workers=workers,
        max_pixels=config.max_pixels,
    )
    print(audited.summary())
    if config.audit_only:
        audited.write(out)
        print(f"{out / 'audit.html'}: the page; audit.json has every finding")
    return (Without(source, audited.dropped) if config.drop_leaks else source), audited
