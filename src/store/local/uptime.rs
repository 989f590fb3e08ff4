//! `DIR/CLOCK`: when the daemon ran, by the wall clock.
//!
//! One line: the version, when it was last seen, the gaps, and the CRC-32 of what stands before it.
//! Written aside, synced and renamed, once a minute and at every step of the clock. Without it, or
//! where it is damaged, the age of what is kept is what the wall clock says.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::error::OpenError;
use super::permissions;
use crate::task::{Timestamp, Uptime};

const NAME: &str = "CLOCK";
const ASIDE: &str = "CLOCK.new";
const VERSION: &str = "1";

/// Where the uptime of a data directory is kept.
#[derive(Clone, Debug)]
pub struct UptimeFile {
    dir: PathBuf,
}

impl UptimeFile {
    /// That of this one, which must be locked.
    #[must_use]
    pub fn of(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// What was written last; an empty one where nothing was, `None` where it is damaged.
    ///
    /// # Errors
    ///
    /// An [`OpenError`] if the disk does not read it.
    pub fn read(&self) -> Result<Option<Uptime>, OpenError> {
        let path = self.dir.join(NAME);
        match fs::read(&path) {
            Ok(bytes) => Ok(parse(&bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Some(Uptime::default())),
            Err(error) => Err(OpenError::io("read", &path)(error)),
        }
    }

    /// Writes it, durably and whole or not at all. Not from two threads at once.
    ///
    /// # Errors
    ///
    /// The disk's; then what was there before still is.
    pub fn write(&self, uptime: &Uptime) -> io::Result<()> {
        let aside = self.dir.join(ASIDE);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = permissions::open(&options, &aside)?;
        file.write_all(line(uptime).as_bytes())?;
        file.sync_all()?;
        fs::rename(&aside, self.dir.join(NAME))?;
        File::open(&self.dir)?.sync_all()
    }
}

fn line(uptime: &Uptime) -> String {
    let mut text = format!("{VERSION} {} ", uptime.seen.map_or(0, |seen| seen.0));
    for (from, to) in &uptime.gaps {
        // Writing into a text cannot fail.
        let _ = write!(text, "{}-{} ", from.0, to.0);
    }
    let sum = crc32fast::hash(text.as_bytes());
    format!("{text}{sum:08x}\n")
}

fn parse(bytes: &[u8]) -> Option<Uptime> {
    let text = std::str::from_utf8(bytes).ok()?;
    let moment = |digits: &str| digits.parse().ok().map(Timestamp);
    let (known, _sum) = text.rsplit_once(' ')?;
    let mut words = known.split(' ').skip(1);
    let seen = moment(words.next()?)?;
    let gap = |word: &str| {
        let (from, to) = word.split_once('-')?;
        Some((moment(from)?, moment(to)?))
    };
    let gaps = words.map(gap).collect::<Option<_>>()?;
    let uptime = Uptime { seen: Some(seen).filter(|seen| seen.0 > 0), gaps };
    (text == line(&uptime)).then_some(uptime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let file = UptimeFile::of(dir.path());
        assert_eq!(file.read().unwrap(), Some(Uptime::default()));
        let gaps = vec![(Timestamp(3), Timestamp(17)), (Timestamp(20), Timestamp(40))];
        for uptime in [
            Uptime { seen: Some(Timestamp(99)), gaps },
            Uptime { seen: Some(Timestamp(7)), gaps: vec![] },
        ] {
            file.write(&uptime).unwrap();
            assert_eq!(file.read().unwrap(), Some(uptime));
        }
        let written = fs::read(dir.path().join(NAME)).unwrap();
        assert!(written.starts_with(b"1 7 "), "{written:?}");
        for at in 0..written.len() {
            let mut flipped = written.clone();
            flipped[at] ^= 1;
            assert_eq!(parse(&flipped), None, "byte {at}");
            assert_eq!(parse(&written[..at]), None, "cut at {at}");
        }
        fs::write(dir.path().join(NAME), "").unwrap();
        assert_eq!(file.read().unwrap(), None);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left aside");
    }
}
