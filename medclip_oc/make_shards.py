"""Pack images and captions into tar shards: what `tools/make_shards.py` runs."""

from dataclasses import fields

from .config.packing import MakeShardsConfig
from .errors import InputError, WorkError
from .runtime import command


def main(config: MakeShardsConfig) -> None:
    """Pack, and print the closing table; or audit alone, or verify."""
    from .packing import formats, verify
    from .packing.pack import PackOptions, check_folder, pack
    from .runtime.workers import cores

    workers, out = config.workers or cores(), config.path("out")
    if config.verify:
        verify.report(out, workers=workers, decode=not config.no_decode_check)
        return
    names = (it.name for it in fields(PackOptions) if it.name != "decode_check")
    named = {name: getattr(config, name) for name in names}
    options = PackOptions(decode_check=not config.no_decode_check, **named)
    if config.source and out.resolve() == config.path("source").resolve():
        raise InputError("--out: the source itself; the shards need a folder of their own")
    # before an audit takes its time
    check_folder(out, options, overwrite=config.overwrite or config.audit_only)
    source = formats.from_settings(config)
    audit = None
    if config.audit or config.audit_only or config.drop_leaks:
        from .audit.audit import audit_source

        audit = audit_source(source, config, workers)
        source.dropped = audit.dropped if config.drop_leaks else None
    if config.audit_only:
        return
    try:
        report = pack(source, out, options, workers=workers, overwrite=config.overwrite)
    except WorkError:
        if audit:  # it may tell why
            audit.write(out)
        raise
    if audit:
        audit.write(out)
    print(report.table())
    if audit:
        print(f"{out / 'audit.html'}: what the audit found")
    print(report.closing(config.out, source.form))


def run() -> None:
    """The command line."""
    command.run(main, MakeShardsConfig)


if __name__ == "__main__":
    run()
