//! A file that is being written.

use super::faults::{Step, step};
use super::{Problem, quoted};
use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// A new file. `path` is the path that it will have in the end, for messages.
#[derive(Debug)]
pub(crate) struct NewFile {
    path: PathBuf,
    writer: BufWriter<File>,
}

impl NewFile {
    /// Calls `create`, and gives the file the permissions of the file at `path` if there is one.
    ///
    /// # Errors
    /// An I/O problem if the file cannot be created, or if there is a folder, a pipe or a device at `path`.
    pub(super) fn create<T>(
        path: &Path,
        create: impl FnOnce() -> io::Result<(File, T)>,
    ) -> Result<(Self, T), Problem> {
        let failed = |error: io::Error| Problem::io("cannot create", &error).in_file(path);
        let replaced = replaced_permissions(path)?;
        let (file, rest) = step(Step::Create, path).and_then(|()| create()).map_err(failed)?;
        if let Some(permissions) = replaced {
            step(Step::Permissions, path).and_then(|()| file.set_permissions(permissions)).map_err(failed)?;
        }
        Ok((Self { path: path.into(), writer: BufWriter::new(file) }, rest))
    }

    /// Writes bytes.
    ///
    /// # Errors
    /// An I/O problem that names the file.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Result<(), Problem> {
        self.write_all(bytes).map_err(|error| Problem::io("cannot write", &error).in_file(&self.path))
    }

    /// Flushes and syncs, so that errors of the disk appear before an old file is replaced.
    ///
    /// # Errors
    /// An I/O problem if flushing or syncing fails.
    pub(crate) fn finish(self) -> Result<(), Problem> {
        let Self { path, writer } = self;
        let failed = |doing, error: io::Error| Problem::io(doing, &error).in_file(&path);
        step(Step::Flush, &path).map_err(|error| failed("cannot write", error))?;
        let file = writer.into_inner().map_err(|error| failed("cannot write", error.into_error()))?;
        step(Step::Sync, &path)
            .and_then(|()| file.sync_all())
            .map_err(|error| failed("cannot sync to disk", error))?;
        tracing::info!(file = %quoted(&path.to_string_lossy()), bytes = file.metadata().map_or(0, |metadata| metadata.len()), "wrote");
        Ok(())
    }

    /// The path that the file will have.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Write for NewFile {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        step(Step::Write, &self.path)?;
        self.writer.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// The permissions of the file that a new file will replace; `None` if there is none.
fn replaced_permissions(path: &Path) -> Result<Option<Permissions>, Problem> {
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => {
            Err(Problem::environment("cannot replace it with a file, because it is not a regular file")
                .in_file(path)
                .help("choose another name for the output"))
        }
        Ok(metadata) => Ok(Some(metadata.permissions())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Problem::io("cannot create", &error).in_file(path)),
    }
}
