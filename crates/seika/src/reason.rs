//! Why pods are not as wanted: words that the status, the events and the documentation share.

/// Why a node's pods, or a Seika's, are not as wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The selector does not match the template's labels.
    SelectorMismatch,
    /// The template is none that pods can be made of.
    InvalidTemplate,
    /// There is no node of this name.
    NodeNotFound,
    /// An operator has cordoned the node.
    NodeCordoned,
    /// The node's kubelet is not heard of, or says that it is not ready.
    NodeNotReady,
    /// The template's node selector, node affinity or tolerations do not fit the node.
    TemplateMisfit,
    /// The scheduler finds no room on the node, or cannot bring a volume there.
    Unschedulable,
    /// The apiserver refuses pods: quota, admission, an invalid template.
    CreateFailed,
    /// Pods fail; the next one waits.
    PodsFailing,
    /// Places are taken by pods that end.
    PodsEnding,
    /// Pods of an earlier template are being replaced.
    Updating,
    /// Pods are there and not ready yet, or are being created.
    Starting,
    /// There are more pods than wanted.
    ScalingDown,
}

impl Reason {
    /// Every one.
    pub const ALL: [Reason; 13] = [
        Reason::SelectorMismatch,
        Reason::InvalidTemplate,
        Reason::NodeNotFound,
        Reason::NodeCordoned,
        Reason::NodeNotReady,
        Reason::TemplateMisfit,
        Reason::Unschedulable,
        Reason::CreateFailed,
        Reason::PodsFailing,
        Reason::PodsEnding,
        Reason::Updating,
        Reason::Starting,
        Reason::ScalingDown,
    ];

    /// As it is in a status.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::SelectorMismatch => "SelectorMismatch",
            Reason::InvalidTemplate => "InvalidTemplate",
            Reason::NodeNotFound => "NodeNotFound",
            Reason::NodeCordoned => "NodeCordoned",
            Reason::NodeNotReady => "NodeNotReady",
            Reason::TemplateMisfit => "TemplateMisfit",
            Reason::Unschedulable => "Unschedulable",
            Reason::CreateFailed => "CreateFailed",
            Reason::PodsFailing => "PodsFailing",
            Reason::PodsEnding => "PodsEnding",
            Reason::Updating => "Updating",
            Reason::Starting => "Starting",
            Reason::ScalingDown => "ScalingDown",
        }
    }

    /// It does not go away by waiting: somebody has to change something.
    #[must_use]
    pub fn needs_somebody(self) -> bool {
        !matches!(
            self,
            Reason::PodsEnding | Reason::Updating | Reason::Starting | Reason::ScalingDown
        )
    }
}
