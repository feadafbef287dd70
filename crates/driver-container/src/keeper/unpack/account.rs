//! Whom an image means by a user's name.

use std::{io, path::Path};

use super::{refuse, small_file};

/// The ids of `user[:group]`, by names of the image's own lists or by numbers; passwd(5), group(5).
pub(crate) fn resolve(text: &str) -> io::Result<(u32, u32, Vec<u32>)> {
    let passwd = small_file(Path::new("/etc/passwd"))?.unwrap_or_default();
    let group = small_file(Path::new("/etc/group"))?.unwrap_or_default();
    find(text, &String::from_utf8_lossy(&passwd), &String::from_utf8_lossy(&group))
        .ok_or_else(|| refuse(format!("it runs as {text:?}, whom it does not know")))
}

fn find(text: &str, passwd: &str, groups: &str) -> Option<(u32, u32, Vec<u32>)> {
    if text.is_empty() {
        return Some((0, 0, vec![]));
    }
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let fits = |id: &u32| *id < crate::ids::COUNT;
    let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
    let number = |fields: &[String], place: usize| fields.get(place)?.parse::<u32>().ok().filter(fits);
    let line = passwd.lines().map(fields).find(|line| {
        line.first().is_some_and(|name| name == user) || (line.len() > 2 && line.get(2).is_some_and(|id| id == user))
    });
    let (uid, own_group, name) = match &line {
        Some(line) => (number(line, 2)?, number(line, 3)?, line.first().cloned()),
        None => (user.parse().ok().filter(fits)?, 0, None),
    };
    let gid = match group {
        None => own_group,
        Some(group) => match groups.lines().map(fields).find(|line| line.first().is_some_and(|name| name == group)) {
            Some(line) => number(&line, 2)?,
            None => group.parse().ok().filter(fits)?,
        },
    };
    let member = |line: &Vec<String>| {
        let members = line.get(3).map(String::as_str).unwrap_or_default();
        group.is_none() && name.as_ref().is_some_and(|name| members.split(',').any(|member| member == name))
    };
    let more = groups.lines().map(fields).filter(member).filter_map(|line| number(&line, 2)).take(64);
    Some((uid, gid, more.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_have_names_and_numbers() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nwww:x:33:34:w:/:/bin/false\nodd\nbig:x:70000:70000::/:\n";
        let group = "root:x:0:\nwww:x:34:\nssl:x:40:www,other\n";
        assert_eq!(find("", passwd, group), Some((0, 0, vec![])));
        assert_eq!(find("www", passwd, group), Some((33, 34, vec![40])));
        assert_eq!(find("33", passwd, group), Some((33, 34, vec![40])));
        assert_eq!(find("www:ssl", passwd, group), Some((33, 40, vec![])));
        assert_eq!(find("1000:7", passwd, group), Some((1000, 7, vec![])));
        assert_eq!(find("1000", passwd, group), Some((1000, 0, vec![])));
        for nobody in ["missing", "www:missing", "big", "99999", "1:99999", "-1"] {
            assert_eq!(find(nobody, passwd, group), None, "{nobody}");
        }
    }
}
