//! Why a value could not be read.

/// Why a stored value could not be read, or a change in it not be judged. A write with such a
/// value is durable wherever a rule asks about values.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unclear {
    /// The value is encrypted at rest.
    #[error("the value is encrypted at rest, so only its key can be judged")]
    Encrypted,
    /// Neither Kubernetes' protobuf nor a JSON object.
    #[error("the value is neither Kubernetes' protobuf nor a JSON object")]
    Format,
    /// The value ends within a field.
    #[error("the value is truncated or damaged")]
    Truncated,
    /// A field's wire type is not the one that its number has.
    #[error("field {0} of a message has an unexpected type")]
    WireType(u32),
    /// A field that this version of orlop does not know.
    #[error("field {0} of a message is not known to this version")]
    UnknownField(u32),
    /// A field that can be there once is there twice.
    #[error("field {0} of a message is there twice")]
    Duplicate(u32),
    /// Fields do not come in the order in which Kubernetes writes them.
    #[error("field {0} of a message is out of order")]
    Order(u32),
    /// A part that every object has is missing.
    #[error("the object has no {0}")]
    Missing(&'static str),
    /// The content is encoded in a way that this version does not know.
    #[error("the content's encoding is not known to this version")]
    Encoding,
    /// Old and new value are of different kinds or versions.
    #[error("old and new value are not of one kind and version")]
    KindChanged,
    /// A kind whose changes this version cannot judge.
    #[error("changes of this kind and version of object cannot be judged")]
    Kind,
    /// A built-in object that is stored as JSON.
    #[error("changes of a built-in object stored as JSON are not judged")]
    JsonBuiltIn,
    /// A JSON value that cannot be read without copying it, or is not valid.
    #[error("the JSON cannot be read")]
    Json,
    /// More fields than an object of this kind has.
    #[error("the object has too many fields")]
    TooMany,
    /// Two owner references say that they are the controller.
    #[error("the object has two controllers")]
    TwoControllers,
}
