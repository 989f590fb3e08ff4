//! `DIR/CLOCK`: when daemons ran, by the wall clock.
//!
//! One line: version, last seen, gaps, CRC-32 of these. It is written aside, synced and renamed,
//! once a minute and at every step of the clock. If it is missing or damaged, ages are computed
//! from the wall clock alone.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use super::error::OpenError;
use super::permissions;
use crate::task::{Timestamp, Uptime};

const NAME: &str = "CLOCK";
const ASIDE: &str = "CLOCK.new";
const VERSION: &str = "1";

#[derive(Clone, Debug)]
pub struct UptimeFile {
    dir: PathBuf,
}

impl UptimeFile {
    /// The file of a data directory, which must be locked.
    pub fn of(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// The default if there is no file, `None` if it is damaged.
    pub fn read(&self) -> Result<Option<Uptime>, OpenError> {
        let path = self.dir.join(NAME);
        match fs::read(&path) {
            Ok(bytes) => Ok(parse(&bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Some(Uptime::default())),
            Err(error) => Err(OpenError::io("read", &path)(error)),
        }
    }

    /// Replaces the file durably and atomically. Must not run on two threads at once.
    pub fn write(&self, uptime: &Uptime) -> io::Result<()> {
        let aside = self.dir.join(ASIDE);
        let mut file = permissions::create(&aside)?;
        file.write_all(line(uptime).as_bytes())?;
        file.sync_all()?;
        fs::rename(&aside, self.dir.join(NAME))?;
        File::open(&self.dir)?.sync_all()
    }
}

fn line(uptime: &Uptime) -> String {
    let mut text = format!("{VERSION} {} ", uptime.seen.map_or(0, |seen| seen.0));
    for (from, to) in &uptime.gaps {
        // Writing to a String cannot fail.
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
    fn an_uptime_is_read_back_and_a_changed_or_truncated_one_is_refused() {
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
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }
}
