//! Traits: what a node is and has, in the words of OpenStack's os-traits.

use std::collections::BTreeSet;

use nephos_driver::Accelerator;
use nephos_node_api::Inventory;
use nephos_types::{Error, Result};

/// How traits begin that an administrator sets, so that they can never be mistaken for detected ones.
const CUSTOM: &str = "CUSTOM_";

/// What programs ask of a CPU: the flag in Linux' words, and the trait.
const CPU_TRAITS: [(&str, &str); 20] = [
    ("aes", "HW_CPU_X86_AESNI"),
    ("avx", "HW_CPU_X86_AVX"),
    ("avx2", "HW_CPU_X86_AVX2"),
    ("avx512bw", "HW_CPU_X86_AVX512BW"),
    ("avx512cd", "HW_CPU_X86_AVX512CD"),
    ("avx512dq", "HW_CPU_X86_AVX512DQ"),
    ("avx512f", "HW_CPU_X86_AVX512F"),
    ("avx512vl", "HW_CPU_X86_AVX512VL"),
    ("avx512_vnni", "HW_CPU_X86_AVX512VNNI"),
    ("bmi1", "HW_CPU_X86_BMI"),
    ("bmi2", "HW_CPU_X86_BMI2"),
    ("f16c", "HW_CPU_X86_F16C"),
    ("fma", "HW_CPU_X86_FMA3"),
    ("pdpe1gb", "HW_CPU_X86_PDPE1GB"),
    ("sha_ni", "HW_CPU_X86_SHA"),
    ("sse4_1", "HW_CPU_X86_SSE41"),
    ("sse4_2", "HW_CPU_X86_SSE42"),
    ("ssse3", "HW_CPU_X86_SSSE3"),
    ("svm", "HW_CPU_X86_SVM"),
    ("vmx", "HW_CPU_X86_VMX"),
];

/// A word of the machine's as part of a trait.
fn part(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

fn word(value: impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(part)).unwrap_or_default()
}

/// What a machine was found to be and have: its architecture, and what its drivers are and can do.
#[must_use]
pub(super) fn detected(inventory: &Inventory) -> BTreeSet<String> {
    let mut traits: BTreeSet<String> = [format!("HW_ARCH_{}", part(&inventory.architecture))].into();
    let flags = inventory.hardware.cpu_flags.split_whitespace();
    traits.extend(
        flags
            .filter_map(|flag| CPU_TRAITS.iter().find(|(known, _)| *known == flag))
            .map(|(_, name)| (*name).to_owned()),
    );
    for driver in &inventory.compute {
        traits.insert(format!("COMPUTE_DRIVER_{}", part(&driver.driver)));
        match driver.accelerator {
            Accelerator::Kvm => drop(traits.insert("COMPUTE_ACCEL_KVM".to_owned())),
            Accelerator::Tcg { .. } => drop(traits.insert("COMPUTE_ACCEL_TCG".to_owned())),
            Accelerator::None => {}
        }
        traits.extend(driver.disk_formats.iter().map(|format| format!("COMPUTE_IMAGE_TYPE_{}", word(format))));
        traits.extend(driver.features.iter().map(|feature| format!("COMPUTE_FEATURE_{}", word(feature))));
    }
    traits
}

/// Refuses what cannot be a trait's name.
pub fn check<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<BTreeSet<String>> {
    let form = |name: &str| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
    };
    let mut traits = BTreeSet::new();
    for name in names {
        if !form(name) {
            return Err(Error::invalid("invalid_trait", "Not the name of a trait")
                .detail(format!("`{name}` has something else than capitals, digits and `_`"))
                .next("see which there are", Some("nephos trait list".to_owned())));
        }
        traits.insert(name.to_owned());
    }
    Ok(traits)
}

/// Refuses what an administrator cannot set.
pub(super) fn check_custom<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<BTreeSet<String>> {
    let traits = check(names)?;
    match traits.iter().find(|name| !name.starts_with(CUSTOM)) {
        None => Ok(traits),
        Some(name) => Err(Error::invalid("invalid_trait", "Such a trait cannot be set")
            .detail(format!("`{name}` does not begin with `{CUSTOM}`; the others are detected"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_traits() {
        assert!(check(["HW_CPU_X86_AVX2", "CUSTOM_1"]).is_ok());
        for bad in ["", "hw", "A-B", "A B", "Ä"] {
            assert_eq!(check([bad]).unwrap_err().code, "invalid_trait");
        }
        assert!(check_custom(["CUSTOM_A"]).is_ok());
        assert!(check_custom(["HW_CPU_X86_AVX2"]).is_err());
        assert_eq!(part("x86-64.v2"), "X86_64_V2");
    }
}
