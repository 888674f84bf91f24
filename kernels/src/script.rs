//! What a step asked of the GPU, in order, so that a later step can be shown to ask for the same.
//!
//! A recorded step replays what it once was: its launches, with its arguments. Whoever replays it goes through the step
//! again on the host, and every request is held to the recorded one. So memory lies where it lay, what is uploaded goes
//! where it went, and a number that changes from step to step and is an argument, where it must not be one, is found.

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Memory of a size class.
    Allocate {
        class: usize,
    },
    /// A kernel, by its handle, with the bytes of its parameters.
    Launch {
        function: usize,
        name: String,
        grid: [u32; 3],
        parameters: Vec<u8>,
    },
    /// Bytes of the host's.
    Upload {
        to: u64,
        bytes: usize,
    },
    Copy {
        to: u64,
        from: u64,
        bytes: usize,
    },
    Fill {
        to: u64,
        bytes: usize,
        value: u32,
    },
}

impl Request {
    fn describe(&self) -> String {
        match self {
            Request::Allocate { class } => format!("{class} bytes of memory"),
            Request::Launch { name, grid, .. } => format!("a launch of {name} on {grid:?} CTAs"),
            Request::Upload { bytes, .. } => format!("an upload of {bytes} bytes"),
            Request::Copy { bytes, .. } => format!("a copy of {bytes} bytes"),
            Request::Fill { bytes, .. } => format!("a fill of {bytes} bytes"),
        }
    }
}

/// The requests of a step, and for each upload and allocation where it went.
#[derive(Debug, Default)]
pub struct Script {
    requests: Vec<Request>,
    /// Addresses of the allocations, in their order.
    addresses: Vec<u64>,
}

impl Script {
    pub fn add(&mut self, request: Request) {
        self.requests.push(request);
    }

    pub fn add_allocation(&mut self, class: usize, address: u64) {
        self.add(Request::Allocate { class });
        self.addresses.push(address);
    }
}

/// A place in a script.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reader {
    requests: usize,
    allocations: usize,
    uploads: usize,
}

impl Reader {
    /// Passes `request`, if the script has it here.
    ///
    /// # Errors
    /// What the script has instead.
    pub fn expect(&mut self, script: &Script, request: &Request) -> Result<(), String> {
        let recorded = script.requests.get(self.requests);
        if recorded == Some(request) {
            self.requests += 1;
            return Ok(());
        }
        let number = self.requests;
        let asked = request.describe();
        Err(match recorded {
            None => format!("request {number} is {asked}, where the recorded step ended"),
            Some(other) if other.describe() == asked => {
                format!("request {number} is {asked} with other arguments than the recorded step's")
            }
            Some(other) => {
                let other = other.describe();
                format!("request {number} is {asked}, where the recorded step had {other}")
            }
        })
    }

    /// The address that an allocation of `class` has.
    ///
    /// # Errors
    /// As [`Reader::expect`].
    pub fn allocation(&mut self, script: &Script, class: usize) -> Result<u64, String> {
        self.expect(script, &Request::Allocate { class })?;
        self.allocations += 1;
        // As many as there are requests for them.
        Ok(script.addresses[self.allocations - 1])
    }

    /// The number of an upload.
    ///
    /// # Errors
    /// As [`Reader::expect`].
    pub fn upload(&mut self, script: &Script, to: u64, bytes: usize) -> Result<usize, String> {
        self.expect(script, &Request::Upload { to, bytes })?;
        self.uploads += 1;
        Ok(self.uploads - 1)
    }

    /// That nothing of the script is left.
    ///
    /// # Errors
    /// What is.
    pub fn end(&self, script: &Script) -> Result<(), String> {
        match script.requests.get(self.requests) {
            None => Ok(()),
            Some(next) => Err(format!(
                "the step ended where the recorded one had {}",
                next.describe()
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(learning_rate: f32) -> Request {
        Request::Launch {
            function: 1,
            name: "optimizer_update".into(),
            grid: [4, 1, 1],
            parameters: learning_rate.to_le_bytes().to_vec(),
        }
    }

    fn script() -> Script {
        let mut script = Script::default();
        script.add_allocation(512, 0x1000);
        script.add(Request::Upload {
            to: 0x1000,
            bytes: 8,
        });
        script.add_allocation(256, 0x2000);
        script.add(launch(0.5));
        script
    }

    #[test]
    fn the_same_step_passes_and_its_memory_lies_where_it_lay() {
        let (script, mut reader) = (script(), Reader::default());
        assert_eq!(reader.allocation(&script, 512), Ok(0x1000));
        assert_eq!(reader.upload(&script, 0x1000, 8), Ok(0));
        assert_eq!(reader.allocation(&script, 256), Ok(0x2000));
        assert!(reader.end(&script).is_err());
        assert_eq!(reader.expect(&script, &launch(0.5)), Ok(()));
        assert_eq!(reader.end(&script), Ok(()));
    }

    #[test]
    fn an_argument_that_changes_from_step_to_step_is_found() {
        let (script, mut reader) = (script(), Reader::default());
        assert!(reader.allocation(&script, 512).is_ok());
        assert!(reader.upload(&script, 0x1000, 8).is_ok());
        assert!(reader.allocation(&script, 256).is_ok());
        let why = reader.expect(&script, &launch(0.25)).unwrap_err();
        assert!(why.contains("optimizer_update"), "{why}");
        assert!(why.contains("other arguments"), "{why}");
    }

    #[test]
    fn a_step_of_another_size_is_found() {
        let (script, mut reader) = (script(), Reader::default());
        let why = reader.allocation(&script, 768).unwrap_err();
        assert!(why.contains("768 bytes of memory"), "{why}");
        let mut reader = Reader::default();
        for _ in 0..4 {
            reader.requests += 1;
        }
        let why = reader.expect(&script, &launch(0.5)).unwrap_err();
        assert!(why.contains("ended"), "{why}");
    }
}
