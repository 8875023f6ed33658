"""Pack images and captions into tar shards: what `tools/make_shards.py` runs."""

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
    options = PackOptions(
        config.samples_per_shard,
        decode_check=not config.no_decode_check,
        max_pixels=config.max_pixels,
        resize=config.resize,
        drop_leaks=config.drop_leaks,
        image_format=config.image_format,
        slices=config.slices,
        axis=config.axis,
        window=config.window,
    )
    if config.source and out.resolve() == config.path("source").resolve():
        raise InputError("--out: the source itself; the shards need a folder of their own")
    if not config.audit_only:
        check_folder(out, options, overwrite=config.overwrite)  # before an audit takes its time
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
