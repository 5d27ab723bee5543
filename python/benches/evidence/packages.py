"""Gets the files of pip and npm packages, without installing them."""

import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile


class PackageError(RuntimeError):
    """A package could not be had."""


def pip_files(name, version, folder):
    """Returns the folder with the unpacked wheel or source archive of a pip package. The first call downloads it below `folder`."""

    def download(into):
        words = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check", "--dest", into]
        run([*words, f"{name}=={version}"], f"pip could not download {name} {version}", f"{sys.executable} has no pip")

    return files(download, pathlib.Path(folder) / "pip" / f"{name}-{version}")


def npm_files(name, version, folder):
    """Returns the folder with the unpacked files of an npm package. The first call downloads it below `folder`."""

    def download(into):
        npm = shutil.which("npm")
        if npm is None:
            raise PackageError(f"npm is not installed; it is needed for the package {name}")
        run([npm, "pack", "--ignore-scripts", "--pack-destination", into, f"{name}@{version}"], f"npm could not download {name} {version}")

    return files(download, pathlib.Path(folder) / "npm" / f"{name.replace('/', '+')}-{version}")


def run(words, failure, no_module=None):
    """Runs a program, and raises `PackageError` with the end of its messages if it fails."""
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode == 0:
        return
    if no_module is not None and "No module named pip" in done.stderr:
        raise PackageError(no_module)
    lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    raise PackageError(f"{failure} (exit code {done.returncode}):\n" + "\n".join(lines[-5:]))


def files(download, target):
    """Returns the folder `target`. If it does not exist, makes it from the one archive that `download` puts into a temporary folder."""
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=target.parent) as temporary:
        temporary = pathlib.Path(temporary)
        archives, unpacked = temporary / "archives", temporary / "unpacked"
        archives.mkdir()
        unpacked.mkdir()
        download(str(archives))
        found = sorted(archives.iterdir())
        if len(found) != 1:
            raise PackageError(f"one archive of {target.name} was expected, {len(found)} were downloaded")
        content = unpack(found[0], unpacked)
        try:
            content.rename(target)
        except OSError:
            # Another process can have made the folder in the meantime.
            if not target.is_dir():
                raise
    return target


def unpack(archive, folder):
    """Returns the folder with the content of an archive. A wheel has its files at the top; other archives have one folder there."""
    try:
        if archive.suffix in (".whl", ".zip"):
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(folder)
        else:
            with tarfile.open(archive) as opened:
                opened.extractall(folder, filter="data")
    except (zipfile.BadZipFile, tarfile.TarError, OSError) as error:
        raise PackageError(f"the archive {archive.name} cannot be unpacked: {error}") from error
    entries = list(folder.iterdir())
    return entries[0] if archive.suffix != ".whl" and len(entries) == 1 and entries[0].is_dir() else folder
