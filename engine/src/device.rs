//! Where and how precisely a model runs.

use std::fmt;
use std::str::FromStr;

/// `--device`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// CUDA where a driver and a card are there, else the CPU.
    #[default]
    Auto,
    Cpu,
    /// The card with this index.
    Cuda(usize),
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Choice, String> {
        let index = |text: &str| text.parse().map_err(|_| format!("'{text}' is no card's index, as in cuda:0"));
        match text {
            "auto" => Ok(Choice::Auto),
            "cpu" => Ok(Choice::Cpu),
            "cuda" => Ok(Choice::Cuda(0)),
            _ => match text.strip_prefix("cuda:") {
                Some(card) => index(card).map(Choice::Cuda),
                None => Err("it is auto, cpu, cuda or cuda:N".into()),
            },
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Choice::Auto => f.write_str("auto"),
            Choice::Cpu => f.write_str("cpu"),
            Choice::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

/// `--precision`: of the matrix products; weights, softmax, norms and losses are f32 in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Precision {
    #[default]
    F32,
    Bf16,
}

/// What a CPU has for products in bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bf16Units {
    /// Tiles: bf16 is quicker than f32.
    Amx,
    /// Vector instructions, which our products don't use: factors are rounded and multiplied in f32.
    Avx512,
    Neither,
}

impl Bf16Units {
    pub fn of_this_cpu() -> Bf16Units {
        if crate::kernels::cpu_has_amx() {
            return Bf16Units::Amx;
        }
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx512bf16") {
            return Bf16Units::Avx512;
        }
        Bf16Units::Neither
    }

    /// As makers of CPUs call it.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Bf16Units::Amx => Some("AMX"),
            Bf16Units::Avx512 => Some("AVX512-BF16"),
            Bf16Units::Neither => None,
        }
    }

    /// What to tell who asks for bf16 where f32 is the quicker one.
    pub fn warning(self) -> Option<&'static str> {
        (self != Bf16Units::Amx).then_some(
            "warning: --precision bf16 is slower than f32 on this CPU, which has no AMX, and less precise: leave it out",
        )
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        })
    }
}

/// Where a model really runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    Cpu,
    Cuda(usize),
}

impl Device {
    /// What to tell who asks for a precision that this device is slower in than in f32.
    pub fn warning(self, precision: Precision) -> Option<&'static str> {
        match (self, precision) {
            (Device::Cpu, Precision::Bf16) => Bf16Units::of_this_cpu().warning(),
            _ => None,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl Choice {
    /// # Errors
    /// The card that was asked for isn't there; says what is missing.
    pub fn resolve(self) -> Result<Device, String> {
        match self {
            Choice::Cpu => Ok(Device::Cpu),
            Choice::Auto => Ok(match cards() {
                Ok(cards) if !cards.is_empty() && toolkit().is_ok() => Device::Cuda(0),
                _ => Device::Cpu,
            }),
            Choice::Cuda(index) => {
                let cards = cards().map_err(|reason| format!("no CUDA device: {reason}"))?;
                if index < cards.len() {
                    toolkit()?;
                    return Ok(Device::Cuda(index));
                }
                Err(format!("there is no CUDA device {index}: this machine has {}", cards.len()))
            }
        }
    }
}

/// An NVIDIA card, as its driver describes it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Card {
    pub name: String,
    pub memory_bytes: u64,
    /// Such as 9.0 for Hopper.
    pub compute_capability: String,
}

/// The cards that the driver shows.
///
/// # Errors
/// There is no driver, or it doesn't start: the reason.
pub fn cards() -> Result<Vec<Card>, String> {
    driver::cards().map(|(_, cards)| cards)
}

/// Why [`Choice::Auto`] left a card out, where there is one.
pub fn passed_over() -> Option<String> {
    let there = cards().is_ok_and(|cards| !cards.is_empty());
    toolkit().err().filter(|_| there).map(|reason| format!("the card isn't used: {reason}"))
}

/// Whether kernels can be compiled.
///
/// # Errors
/// A part of the CUDA toolkit isn't found: which, and what to set.
fn toolkit() -> Result<(), String> {
    if !driver::has_compiler() {
        return Err(
            "kernels are compiled by NVRTC, of the CUDA toolkit, and libnvrtc.so isn't found: put the toolkit's \
                    lib64 on LD_LIBRARY_PATH"
                .into(),
        );
    }
    let usual = ["/usr/local/cuda", "/opt/cuda", "/usr/bin/nvcc"];
    if std::env::var_os("CUDA_PATH").is_none() && !usual.iter().any(|place| std::path::Path::new(place).exists()) {
        return Err(
            "kernels are compiled with the headers of the CUDA toolkit, which aren't found: set CUDA_PATH".into()
        );
    }
    Ok(())
}

/// The newest CUDA version that the driver can run, such as "13.0".
///
/// # Errors
/// As [`cards`].
pub fn driver_version() -> Result<String, String> {
    driver::cards().map(|(version, _)| format!("{}.{}", version / 1000, version % 1000 / 10))
}

#[cfg(unix)]
mod driver {
    //! The CUDA driver, asked without linking to it.

    use std::ffi::{CStr, c_char, c_int, c_void};

    use super::Card;

    /// The driver's version and its cards.
    pub fn cards() -> Result<(c_int, Vec<Card>), String> {
        // SAFETY: the library's name is a C string; the handle stays open for the life of the process.
        let library = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_LAZY | libc::RTLD_GLOBAL) };
        if library.is_null() {
            return Err("the NVIDIA driver's library, libcuda.so.1, isn't installed".into());
        }
        type Init = unsafe extern "C" fn(c_int) -> c_int;
        type Get = unsafe extern "C" fn(*mut c_int) -> c_int;
        type Name = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
        type Memory = unsafe extern "C" fn(*mut usize, c_int) -> c_int;
        type Attribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
        // SAFETY: the signatures are those of cuda.h; every pointer handed over outlives its call.
        unsafe {
            let init: Init = std::mem::transmute(symbol(library, c"cuInit")?);
            let count_of: Get = std::mem::transmute(symbol(library, c"cuDeviceGetCount")?);
            let version_of: Get = std::mem::transmute(symbol(library, c"cuDriverGetVersion")?);
            let name_of: Name = std::mem::transmute(symbol(library, c"cuDeviceGetName")?);
            let memory_of: Memory = std::mem::transmute(symbol(library, c"cuDeviceTotalMem_v2")?);
            let attribute_of: Attribute = std::mem::transmute(symbol(library, c"cuDeviceGetAttribute")?);
            match init(0) {
                0 => {}
                100 => return Err("the NVIDIA driver finds no card".into()),
                code => return Err(format!("the NVIDIA driver doesn't start (cuInit: error {code})")),
            }
            let (mut count, mut version) = (0, 0);
            if count_of(&mut count) != 0 || version_of(&mut version) != 0 {
                return Err("the NVIDIA driver doesn't tell its cards".into());
            }
            let card = |ordinal| {
                let mut name = [0 as c_char; 256];
                let (mut memory, mut major, mut minor) = (0, 0, 0);
                name_of(name.as_mut_ptr(), 255, ordinal);
                memory_of(&mut memory, ordinal);
                // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
                attribute_of(&mut major, 75, ordinal);
                attribute_of(&mut minor, 76, ordinal);
                Card {
                    name: CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned(),
                    memory_bytes: memory as u64,
                    compute_capability: format!("{major}.{minor}"),
                }
            };
            Ok((version, (0..count).map(card).collect()))
        }
    }

    /// Whether NVRTC can be loaded, by one of the names it goes by.
    pub fn has_compiler() -> bool {
        [c"libnvrtc.so", c"libnvrtc.so.13", c"libnvrtc.so.12", c"libnvrtc.so.11"].into_iter().any(|name| {
            // SAFETY: the name is a C string; the handle stays open for the life of the process.
            !unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY) }.is_null()
        })
    }

    /// # Safety
    /// `library` is a handle that `dlopen` returned.
    unsafe fn symbol(library: *mut c_void, name: &CStr) -> Result<*mut c_void, String> {
        // SAFETY: by the caller's promise.
        let found = unsafe { libc::dlsym(library, name.as_ptr()) };
        if found.is_null() {
            return Err(format!("the NVIDIA driver lacks {}", name.to_string_lossy()));
        }
        Ok(found)
    }
}

#[cfg(not(unix))]
mod driver {
    use super::Card;

    pub fn cards() -> Result<(i32, Vec<Card>), String> {
        Err("CUDA is supported on Linux".into())
    }

    pub fn has_compiler() -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_without_amx_is_never_silent() {
        assert_eq!(Bf16Units::Amx.warning(), None);
        for units in [Bf16Units::Avx512, Bf16Units::Neither] {
            let warning = units.warning().unwrap();
            assert!(warning.starts_with("warning: ") && warning.contains("slower than f32"), "{warning}");
        }
    }

    #[test]
    fn bf16_is_never_the_default() {
        assert_eq!(Precision::default(), Precision::F32);
        assert_eq!(crate::train::config::Config::default().precision, Precision::F32);
        for preset in crate::train::presets::PRESETS {
            let settings: toml::Table = preset.text.parse().unwrap_or_else(|e| panic!("{}: {e}", preset.name));
            let precision = settings.get("precision").and_then(toml::Value::as_str);
            assert!(precision.is_none_or(|precision| precision == "f32"), "{}: {precision:?}", preset.name);
        }
    }
}
