"""`python -m itrain_images [IMAGE…]`: builds images, `make images`. Environment: see docs/images.md."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from itrain_images.base import EPOCH, BaseError, make_base
from itrain_images.build import (
    BuildError,
    Built,
    Engine,
    Order,
    base_reference,
    build_base,
    build_image,
    built_before,
    find_engine,
    keep_receipt,
)
from itrain_images.locks import LockError
from itrain_images.sbom import build_sbom
from itrain_images.sets import BUILD, BY_NAME, IMAGES, ROOT, ImageSet, version
from itrain_images.wheelhouse import make_wheelhouse

MIB = 1 << 20


def main() -> int:
    arguments = build_parser().parse_args()
    try:
        engine = Engine(arguments.engine) if arguments.engine else find_engine()
        for name in arguments.images or [image.name for image in IMAGES]:
            make_image(BY_NAME[name], engine, arguments)
    except (BaseError, BuildError, LockError) as error:
        print(f"make images: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"make images: {' '.join(map(str, error.cmd[:5]))} … ended with {error.returncode}", file=sys.stderr)
        return 1
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m itrain_images", description="Build iTrain's container images.")
    parser.add_argument("images", nargs="*", metavar="IMAGE", choices=[*BY_NAME, []], help=", ".join(BY_NAME))
    parser.add_argument("--engine", choices=[e.value for e in Engine], help="default: the first that is here")
    parser.add_argument("--base-image", default="", help="default: a base made from Debian's packages")
    parser.add_argument("--prefix", default="localhost/itrain", help="registry and folder of the images' names")
    parser.add_argument("--uncompressed", action="store_true", help="an archive for a node on this machine, sooner")
    parser.add_argument("--twice", action="store_true", help="build again from nothing; fail unless the digests agree")
    return parser


def make_image(image: ImageSet, engine: Engine, arguments: argparse.Namespace) -> None:
    epoch = source_date()
    root = None if arguments.base_image else make_base(image.base)
    base = arguments.base_image if root is None else base_reference(root)
    wheels = make_wheelhouse(image, epoch=epoch)
    write_sbom(image, build_sbom(image.name, version(), wheels, root, epoch=epoch))
    order = Order(
        image=image,
        wheels=image.folder,
        base=base,
        reference=image.reference(arguments.prefix),
        archive=BUILD / f"{image.name}.tar",
        epoch=epoch,
        revision=git("rev-parse", "HEAD") or "unknown",
        compress=not arguments.uncompressed,
        fresh=arguments.twice,
        offline=root is not None,
    )
    if not arguments.twice and (found := built_before(order, engine)):
        tell(order.reference, found, " (nothing has changed)")
        return
    if root is not None:
        build_base(root, engine, epoch=EPOCH)
    built = build_image(order, engine)
    tell(order.reference, built)
    if arguments.twice:
        again = build_image(order, engine)
        if again.digest != built.digest:
            raise BuildError(f"{image.name}: built twice, {built.digest} became {again.digest}")
        print("  built twice: the same digest")
    keep_receipt(order, engine)


def write_sbom(image: ImageSet, text: str) -> None:
    """Into the build's context, from where it goes into the image, and beside the archive."""
    for path in (image.folder / "sbom.cdx.json", BUILD / f"{image.name}.cdx.json"):
        path.write_text(text)
    license_file = image.folder / "LICENSE"
    license_file.write_bytes((ROOT / "LICENSE").read_bytes())


def tell(reference: str, built: Built, note: str = "") -> None:
    size = f"{built.compressed_bytes / MIB:.1f} MiB, {built.layers} layers"
    print(f"{reference}{note}\n  {built.digest}\n  {size}\n  {built.archive}", flush=True)


def source_date() -> int:
    """SOURCE_DATE_EPOCH, else the time of the last commit; without git, 1 January 2026."""
    return int(os.environ.get("SOURCE_DATE_EPOCH") or git("log", "-1", "--format=%ct") or EPOCH)


def git(*arguments: str) -> str:
    """What git says of this checkout; empty where there is no git or no repository."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


if __name__ == "__main__":
    sys.exit(main())
