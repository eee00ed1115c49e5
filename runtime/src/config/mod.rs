//! Layered configuration: typed defaults, then a YAML file, then `TAPIO_` variables, then flags.
//!
//! The serialized default of the root struct is the list of known keys. Every key of every layer is
//! checked against it before anything else happens, so a typing error is reported with its full
//! path and the place it came from. Config structs therefore never skip fields when serializing.

mod layers;
mod units;

use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use layers::Layer;
pub use units::{ByteSize, HumanDuration, UnitError};

/// Exit code of a process whose configuration is wrong (`EX_USAGE` of `sysexits.h`).
pub const EXIT_CONFIG: i32 = 64;

/// Environment variables with this prefix are configuration: `TAPIO_BUS__CLIENT_NAME` is
/// `bus.client_name`.
pub const ENV_PREFIX: &str = "TAPIO_";

/// Separates path segments in a variable name; single underscores belong to keys.
pub const ENV_SEPARATOR: &str = "__";

/// Variables that share the prefix and are not configuration keys.
pub const ENV_RESERVED: &[&str] =
    &["TAPIO_SERVER", "TAPIO_DATA_DIR", "TAPIO_LOG", "TAPIO_CONFIG", "TAPIO_NATS_SERVER"];

/// Why the configuration could not be used. The process should exit with [`EXIT_CONFIG`].
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A key that no component knows.
    #[error("unknown configuration key `{key}` in {source_name}{hint}")]
    UnknownKey {
        /// Dotted path of the key.
        key: String,
        /// The file, variable or flag it came from.
        source_name: String,
        /// The known keys next to it, or the nearest one.
        hint: String,
    },
    /// A known key with a value that does not fit.
    #[error("{message} (set in {source_name})")]
    InvalidValue {
        /// What is wrong, with the key.
        message: String,
        /// The file, variable or flag it came from.
        source_name: String,
    },
    /// A value of the right type with which nothing can be done.
    #[error("configuration key `{key}` cannot be used: {message}")]
    Unusable {
        /// Dotted path of the key.
        key: String,
        /// What is wrong with its value.
        message: String,
    },
    /// The file does not exist or cannot be read.
    #[error("configuration file {path} cannot be read: {message}")]
    FileUnreadable {
        /// The path as given.
        path: PathBuf,
        /// The reason of the operating system.
        message: String,
    },
    /// The file is not YAML or not a mapping.
    #[error("configuration file {path} is not valid: {message}")]
    FileInvalid {
        /// The path as given.
        path: PathBuf,
        /// What the parser says, with its position.
        message: String,
    },
    /// A flag that is not `key=value`.
    #[error("override `{text}` is not of the form key=value, for example bus.ack_timeout=5s")]
    OverrideForm {
        /// The flag's text.
        text: String,
    },
    /// The default of the root struct cannot be serialized: a bug of the struct.
    #[error("default configuration cannot be represented: {0}")]
    Defaults(String),
}

/// Where configuration comes from, weakest first; the typed default is below all of them.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// A YAML file; it must exist when given.
    pub file: Option<PathBuf>,
    /// Environment variables, name and value; those without the prefix and the reserved ones are
    /// ignored.
    pub environment: Vec<(String, String)>,
    /// Flags: dotted key and value.
    pub overrides: Vec<(String, String)>,
}

impl Sources {
    /// The file, if any, and the environment of this process. A variable that is not UTF-8 cannot
    /// be a configuration value and is passed over.
    pub fn from_process(file: Option<PathBuf>) -> Self {
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self { file, environment, overrides: Vec::new() }
    }

    /// Adds a flag of the form `key=value`.
    ///
    /// # Errors
    /// [`ConfigError::OverrideForm`] without `=` or with an empty key.
    pub fn with_override(mut self, text: &str) -> Result<Self, ConfigError> {
        match text.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => {
                self.overrides.push((key.trim().to_owned(), value.to_owned()));
                Ok(self)
            }
            _ => Err(ConfigError::OverrideForm { text: text.to_owned() }),
        }
    }
}

/// Loads the root configuration. `T` and every struct in it should carry
/// `#[serde(default, deny_unknown_fields)]`.
///
/// # Errors
/// The first wrong key or value, weakest layer first.
pub fn load<T>(sources: &Sources) -> Result<T, ConfigError>
where
    T: Serialize + DeserializeOwned + Default,
{
    let known =
        serde_json::to_value(T::default()).map_err(|error| ConfigError::Defaults(error.to_string()))?;
    let mut layers = Vec::new();
    if let Some(path) = &sources.file {
        layers.push(Layer::from_file(path)?);
    }
    layers.extend(Layer::from_environment(&sources.environment, &known));
    layers.extend(Layer::from_overrides(&sources.overrides, &known));
    for layer in &layers {
        layer.check_known(&known)?;
    }
    merge(&known, &layers)?.try_deserialize().map_err(|error| invalid_value(&error, &layers))
}

fn merge(known: &Json, layers: &[Layer]) -> Result<::config::Config, ConfigError> {
    let defaults = Layer::defaults(known)?;
    let mut builder = ::config::Config::builder().add_source(defaults);
    for layer in layers {
        builder = builder.add_source(layer.clone());
    }
    builder.build().map_err(|error| invalid_value(&error, layers))
}

/// Adds to the error of the parser from which source the offending key came.
fn invalid_value(error: &::config::ConfigError, layers: &[Layer]) -> ConfigError {
    let key = match error {
        ::config::ConfigError::Type { key, .. } | ::config::ConfigError::At { key, .. } => key.as_deref(),
        _ => None,
    };
    let source = key.and_then(|key| layers.iter().rev().find(|layer| layer.sets(key)));
    let source_name = source.map_or("the merged configuration", Layer::name).to_owned();
    let text = error.to_string();
    // The library repeats its own origin at the end; ours says the same with the variable's name.
    let message = match text.rsplit_once(" in ") {
        Some((head, origin)) if origin == source_name => head.to_owned(),
        _ => text,
    };
    ConfigError::InvalidValue { message, source_name }
}

#[cfg(test)]
mod tests;
