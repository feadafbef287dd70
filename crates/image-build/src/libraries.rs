//! Which shared libraries a program needs, read from the program itself, so that no list of library packages (whose
//! names change from release to release) has to be kept.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use nephos_types::{Error, Result};
use object::{
    Endianness,
    elf::{DT_NEEDED, FileHeader64},
    read::elf::{Dyn, FileHeader},
};

use crate::{
    command::io_error,
    toolbox::{LOADER, Toolbox},
};

/// All libraries that the programs need, directly and through other libraries: name to file.
pub(crate) fn closure(tools: &Toolbox, programs: &[PathBuf]) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let mut open = programs.to_vec();
    while let Some(file) = open.pop() {
        for name in needed(&file)? {
            if found.contains_key(&name) || name == LOADER {
                continue;
            }
            let library = tools.library(&name).ok_or_else(|| {
                Error::bug(format!("{} needs the library {name}, which the packages do not hold", file.display()))
            })?;
            open.push(library.clone());
            found.insert(name, library);
        }
    }
    Ok(found)
}

fn needed(file: &Path) -> Result<Vec<String>> {
    let content = fs::read(file).map_err(|error| io_error("reading", file, error))?;
    parse(&content).map_err(|error| Error::internal(format!("{} is not a program for x86-64", file.display()), error))
}

fn parse(content: &[u8]) -> object::Result<Vec<String>> {
    let header = FileHeader64::<Endianness>::parse(content)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, content)?;
    let Some((entries, strings)) = sections.dynamic(endian, content)? else { return Ok(vec![]) };
    let strings = sections.strings(endian, content, strings)?;
    entries
        .iter()
        .filter(|entry| entry.tag(endian) == DT_NEEDED)
        .map(|entry| Ok(String::from_utf8_lossy(entry.string(endian, strings)?).into_owned()))
        .collect()
}
