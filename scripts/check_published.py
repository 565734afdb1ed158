"""Tests the packages as strangers get them: built without workspace sources, each alone in a fresh environment.

    uv run python scripts/check_published.py                                  # every package, newest dependencies
    uv run python scripts/check_published.py --resolution lowest -p nanochat-model
    uv run python scripts/check_published.py --build-only
    uv run python scripts/check_published.py --oldest-siblings                # against releases, in the locked environment

Wheel and sdist are built, the wheel (made from the sdist) is installed with its extras and test dependencies, the tests come
from the sdist. With `--resolution lowest`, direct dependencies have the lowest version allowed, siblings included: of those
the oldest allowed release is built from its tag, or what is here while there is no such tag. Needs the network, and for the
packages that need torch several gigabytes of disk and as many minutes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

sys.path.insert(0, str(Path(__file__).parent))
from release import ROOT, Package, find, packages


def run(*command: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> None:
    subprocess.run([str(part) for part in command], cwd=cwd, env=env, check=True)


def build(directory: Path, dist: Path) -> None:
    """An sdist, and from it a wheel, as a package index would get them."""
    run("uv", "build", "--quiet", "--no-sources", "--out-dir", dist, directory)


def wheel_of(name: str, dist: Path) -> Path:
    [wheel] = dist.glob(f"{name.replace('-', '_')}-*.whl")
    return wheel


def needed_wheels(package: Package, resolution: str, dist: Path, work: Path) -> dict[str, Path]:
    """A wheel of the package and of each sibling it needs, directly or not; the oldest ones allowed if asked for."""
    wheels = {package.name: wheel_of(package.name, dist)}
    to_do = package.siblings()
    while to_do:
        sibling = to_do.pop()
        if sibling.name not in wheels:
            tag = oldest_allowed(sibling) if resolution == "lowest" else None
            wheels[sibling.name] = build_tag(sibling.name, tag, work) if tag else wheel_of(sibling.name, dist)
            to_do += find(sibling.name).siblings()
    return wheels


def requirements(lines: list[str], wheels: dict[str, Path]) -> list[str]:
    """Those of the tests, with a file for every package of ours: a name of ours on a public index must never come in."""
    named = {name: set[str]() for name in wheels}
    others = []
    for required in map(Requirement, lines):
        if required.name in named:
            named[required.name] |= required.extras
        else:
            others.append(str(required))
    ours = [f"{name}[{','.join(sorted(extras))}] @ {wheels[name].as_uri()}" for name, extras in named.items()]
    return [*others, *(line.replace("[]", "") for line in ours)]


def oldest_allowed(sibling: Requirement) -> str | None:
    """The tag of the oldest release that the range lets in; None while there is none."""
    listed = subprocess.run(
        ["git", "tag", "--list", f"{sibling.name}-v*"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    versions = sorted(Version(tag.rpartition("-v")[2]) for tag in listed)
    allowed = [version for version in versions if version in sibling.specifier]
    return f"{sibling.name}-v{allowed[0]}" if allowed else None


def build_tag(name: str, tag: str, work: Path) -> Path:
    source, dist = work / tag, work / f"{tag}-dist"
    source.mkdir(parents=True)
    archive = work / f"{tag}.tar"
    run("git", "archive", "--output", archive, f"{tag}:packages/{name}")
    with tarfile.open(archive) as tar:
        tar.extractall(source, filter="data")
    build(source, dist)
    return wheel_of(name, dist)


def test_alone(package: Package, resolution: str, dist: Path, work: Path) -> None:
    """Installs the package's wheel into an environment of its own and runs the tests of its sdist there."""
    work = work / f"{package.name}-{resolution}"
    work.mkdir()
    [sdist] = dist.glob(f"{package.name.replace('-', '_')}-*.tar.gz")
    with tarfile.open(sdist) as tar:
        tar.extractall(work, filter="data")
    [unpacked] = (path for path in work.iterdir() if path.is_dir())
    python = work / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    run("uv", "venv", "--quiet", "--python", f"{sys.version_info.major}.{sys.version_info.minor}", work / "venv")
    wheels = needed_wheels(package, resolution, dist, work)
    project = tomllib.loads((unpacked / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = work / "requirements.txt"
    wanted.write_text("\n".join(requirements(project["dependency-groups"]["dev"], wheels)) + "\n")
    resolve = "highest" if resolution == "newest" else "lowest-direct"
    run("uv", "pip", "install", "--quiet", "--python", python, "--resolution", resolve, "--requirement", wanted)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CI": "true"}  # CI: the same examples every time, and no deadlines
    run(
        *(python, "-m", "pytest", "-q", "--import-mode=importlib", "-p", "no:cacheprovider", "-m", "not soak", "tests"),
        cwd=unpacked,
        env=env,
    )


def test_with_oldest_siblings(package: Package, work: Path) -> None:
    """Runs the package's tests from here against the oldest releases that it allows of its siblings, all else as locked.

    A sibling whose oldest allowed release is the present version, or that has no release yet, is tested as it is here.
    """
    older = work / f"{package.name}-siblings"
    for sibling in package.siblings():
        tag = oldest_allowed(sibling)
        if tag is None or tag == find(sibling.name).tag:
            print(f"{sibling.name}: no older release is allowed than what is here")
            continue
        print(f"{sibling.name}: {tag}")
        wheel = build_tag(sibling.name, tag, older)
        run("uv", "pip", "install", "--quiet", "--no-deps", "--target", older / "installed", wheel)
    if older.exists():
        env = {**os.environ, "PYTHONPATH": str(older / "installed")}
        isolated = ("uv", "run", "--isolated", "--exact", "--package", package.name)
        run(*isolated, "pytest", "-q", package.directory / "tests", env=env)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-p", "--package", action="append", help="only this one; may be given again")
    parser.add_argument("--resolution", choices=("newest", "lowest"), default="newest")
    parser.add_argument("--build-only", action="store_true")
    parser.add_argument("--oldest-siblings", action="store_true")
    given = parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        dist = work / "dist"
        if not given.oldest_siblings:
            for package in packages():
                build(package.directory, dist)
            print(*sorted(path.name for path in dist.iterdir()), sep="\n")
        chosen = [p for p in packages() if not given.build_only and (not given.package or p.name in given.package)]
        against = "the oldest siblings" if given.oldest_siblings else f"{given.resolution} dependencies"
        for package in chosen:
            start = time.perf_counter()
            print(f"\n== {package.name}, {against}", flush=True)
            try:
                if given.oldest_siblings:
                    test_with_oldest_siblings(package, work)
                else:
                    test_alone(package, given.resolution, dist, work)
            except subprocess.CalledProcessError as error:
                failed.append(package.name)
                print(f"{package.name} fails: {error}", flush=True)
            else:
                print(f"{package.name} passes ({time.perf_counter() - start:.0f} s)", flush=True)
    if failed:
        sys.exit(f"failed with {against}: {', '.join(failed)}")


if __name__ == "__main__":
    main()
