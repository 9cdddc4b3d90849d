//! The loaded programs, wherever they come from: the object inside this binary, or pins that an
//! earlier daemon of the same binary has left.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use aya::programs::{Program, ProgramError, ProgramFd, SchedClassifier, Xdp};
use aya_obj::programs::XdpAttachType;
use tracing::debug;

use super::{
    error::{LoadError, one_line},
    load::{
        Object, Options, PROGRAM_ADMIT, PROGRAM_IN, PROGRAM_IN_GENERIC, PROGRAM_MOMENT,
        PROGRAM_OUT, PROGRAM_OUT_GENERIC, PROGRAM_PASS, PROGRAM_SWEEP, object_name, rejected,
    },
    pins::{PinError, Pins},
};

/// Loaded at once. Those for generic mode are loaded when they are needed.
const AT_ONCE: [&str; 5] = [
    PROGRAM_IN,
    PROGRAM_OUT,
    PROGRAM_SWEEP,
    PROGRAM_MOMENT,
    PROGRAM_PASS,
];

/// XDP programs; all others are TC programs.
const XDP: [&str; 3] = [PROGRAM_IN, PROGRAM_IN_GENERIC, PROGRAM_PASS];

/// The programs.
pub struct Programs {
    options: Options,
    /// Where they are pinned: maps, and programs of this object.
    pins: Option<(PathBuf, PathBuf)>,
    pinned: BTreeMap<&'static str, Program>,
    object: Option<Object>,
    local_error: Option<String>,
}

impl Programs {
    /// Loads those of an object.
    pub(super) fn of(object: Object) -> Result<Self, LoadError> {
        let mut programs = Self::unloaded(object);
        programs.load_all()?;
        Ok(programs)
    }

    /// Those of an object, none of them loaded yet.
    pub(super) fn unloaded(object: Object) -> Self {
        Self {
            options: Options::default(),
            pins: None,
            pinned: BTreeMap::new(),
            local_error: object.local_error.clone(),
            object: Some(object),
        }
    }

    /// Those that are pinned, if they are this object's; else those of the object, loaded over the pinned
    /// maps.
    pub(super) fn pinned(options: Options, pins: &Pins) -> Result<Self, LoadError> {
        let mut programs = Self {
            options,
            pins: Some((pins.maps(), pins.programs(&object_name()))),
            pinned: BTreeMap::new(),
            object: None,
            local_error: None,
        };
        programs.take_pinned();
        let whole = AT_ONCE
            .iter()
            .chain(&[PROGRAM_ADMIT])
            .all(|name| programs.pinned.contains_key(name));
        if cfg!(feature = "trace") || !whole {
            programs.pinned.clear();
            programs.local_error = programs.object()?.local_error.clone();
            programs.load_all()?;
            programs.pin_all()?;
        }
        Ok(programs)
    }

    /// Pins them.
    pub(super) fn pin(mut self, pins: &Pins) -> Result<Self, LoadError> {
        self.pins = Some((pins.maps(), pins.programs(&object_name())));
        self.pin_all()?;
        Ok(self)
    }

    /// Why there is no `synguard_admit`, if there is none.
    pub(super) fn local_error(&self) -> Option<&str> {
        self.local_error.as_deref()
    }

    #[cfg(feature = "trace")]
    pub(super) fn trace(
        &mut self,
    ) -> Result<aya_log::EbpfLogger<&'static dyn log::Log>, LoadError> {
        aya_log::EbpfLogger::init(&mut self.object()?.ebpf)
            .map_err(|error| LoadError::Object(one_line(&error)))
    }

    fn load_all(&mut self) -> Result<(), LoadError> {
        for name in AT_ONCE {
            self.load(name)?;
        }
        if self.local_error.is_none() {
            self.load(PROGRAM_ADMIT)?;
        }
        Ok(())
    }

    fn take_pinned(&mut self) {
        let Some((_, directory)) = &self.pins else {
            return;
        };
        let all =
            AT_ONCE
                .into_iter()
                .chain([PROGRAM_ADMIT, PROGRAM_IN_GENERIC, PROGRAM_OUT_GENERIC]);
        for name in all {
            let path = directory.join(name);
            let program = if XDP.contains(&name) {
                Xdp::from_pin(&path, XdpAttachType::Interface).map(Program::Xdp)
            } else {
                SchedClassifier::from_pin(&path).map(Program::SchedClassifier)
            };
            match program {
                Ok(program) => drop(self.pinned.insert(name, program)),
                Err(error) => debug!(error = one_line(&error), "no pinned program {name}"),
            }
        }
    }

    /// Pins those that are loaded and not pinned yet, the whole directory at once where it is new.
    fn pin_all(&mut self) -> Result<(), LoadError> {
        let (Some((_, directory)), Some(object)) = (&self.pins, &mut self.object) else {
            return Ok(());
        };
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| LoadError::Pins(PinError::Io { what, path, source })
        };
        // A directory that is being filled must not be taken for a whole one.
        let fresh = !fs::exists(directory).map_err(failed("look at", directory))?;
        let target = if fresh {
            let mut name = directory.file_name().unwrap_or_default().to_owned();
            name.push("_new");
            directory.with_file_name(name)
        } else {
            directory.clone()
        };
        if fresh {
            drop(fs::remove_dir_all(&target));
            fs::create_dir_all(&target).map_err(failed("make", &target))?;
        }
        for (name, program) in object.ebpf.programs_mut() {
            let path = target.join(name);
            if program.fd().is_err() || fs::exists(&path).unwrap_or(false) {
                continue;
            }
            program
                .pin(&path)
                .map_err(|error| failed("pin", &path)(io::Error::other(one_line(&error))))?;
        }
        if fresh {
            fs::rename(&target, directory).map_err(failed("name", directory))?;
        }
        Ok(())
    }

    fn object(&mut self) -> Result<&mut Object, LoadError> {
        let object = match self.object.take() {
            Some(object) => object,
            None => {
                let maps = self.pins.as_ref().map(|(maps, _)| maps.as_path());
                Object::open(&self.options, maps)?
            }
        };
        Ok(self.object.insert(object))
    }

    fn load(&mut self, name: &str) -> Result<(), LoadError> {
        let program = self
            .object()?
            .ebpf
            .program_mut(name)
            .ok_or_else(|| LoadError::Object(format!("program {name} is missing")))?;
        if program.fd().is_ok() {
            return Ok(());
        }
        match program {
            Program::Xdp(program) => program.load(),
            Program::SchedClassifier(program) => program.load(),
            _ => return Err(wrong_type(name)),
        }
        .map_err(|error| rejected(name, &error))
    }

    fn find(&self, name: &str) -> Result<&Program, LoadError> {
        let loaded = || self.object.as_ref()?.ebpf.program(name);
        self.pinned
            .get(name)
            .or_else(loaded)
            .ok_or_else(|| LoadError::Object(format!("program {name} is missing")))
    }

    /// A program that is loaded.
    pub fn loaded<'a, P>(&'a self, name: &str) -> Result<&'a P, LoadError>
    where
        &'a P: TryFrom<&'a Program, Error = ProgramError>,
    {
        self.find(name)?.try_into().map_err(|_| wrong_type(name))
    }

    /// The descriptor of a program that is loaded.
    pub fn fd(&self, name: &str) -> Result<&ProgramFd, LoadError> {
        let program = self.find(name)?;
        program.fd().map_err(|error| LoadError::Kernel {
            what: format!("find program {name}"),
            reason: one_line(&error),
        })
    }

    /// A program, loaded now where it is not yet.
    pub fn get<'a, P>(&'a mut self, name: &str) -> Result<&'a mut P, LoadError>
    where
        &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
    {
        if !self.pinned.contains_key(name) {
            self.load(name)?;
            self.pin_all()?;
        }
        let program = match self.pinned.get_mut(name) {
            Some(program) => Some(program),
            None => self
                .object
                .as_mut()
                .and_then(|object| object.ebpf.program_mut(name)),
        };
        program
            .ok_or_else(|| LoadError::Object(format!("program {name} is missing")))?
            .try_into()
            .map_err(|_| wrong_type(name))
    }
}

fn wrong_type(name: &str) -> LoadError {
    LoadError::Object(format!("program {name} has the wrong type"))
}
