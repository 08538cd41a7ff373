//! A user's token: had by name and password, and had again when a member does not take it.

use crate::settings::User;
use etcd_api::etcdserverpb::{AuthenticateRequest, auth_client::AuthClient};
use std::sync::{Mutex, PoisonError};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// Where etcd looks for a token.
const TOKEN: &str = "token";

pub(crate) type Token = MetadataValue<Ascii>;

/// The token of one user for one cluster. etcd's simple tokens end after 5 minutes without use,
/// at a member's restart, and when users change.
pub(crate) struct Auth {
    user: User,
    state: Mutex<State>,
    /// Held while a new one is asked for: one call asks, the others have it then.
    renewing: tokio::sync::Mutex<()>,
}

#[derive(Clone, Debug, PartialEq)]
enum State {
    /// Not asked for yet.
    None,
    /// Auth is off there: none is wanted.
    Off,
    Has(Token),
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

impl Auth {
    pub(crate) fn new(user: User) -> Self {
        Auth {
            user,
            state: Mutex::new(State::None),
            renewing: tokio::sync::Mutex::new(()),
        }
    }

    fn state(&self) -> State {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.clone()
    }

    /// Has a token by the member at `channel`, if there is none.
    pub(crate) async fn ready(&self, channel: &Channel) -> Result<(), Status> {
        match self.state() {
            State::None => self.renew(None, channel).await,
            State::Off | State::Has(_) => Ok(()),
        }
    }

    /// The token to send, if one is wanted.
    pub(crate) fn token(&self) -> Option<Token> {
        match self.state() {
            State::Has(token) => Some(token),
            State::None | State::Off => None,
        }
    }

    /// Has another token by the member at `channel` than the one that was refused.
    pub(crate) async fn renew(
        &self,
        refused: Option<&Token>,
        channel: &Channel,
    ) -> Result<(), Status> {
        let _one = self.renewing.lock().await;
        let known = self.state();
        if matches!(&known, State::Has(token) if Some(token) != refused) {
            return Ok(());
        }
        let request = AuthenticateRequest {
            name: self.user.name.clone(),
            password: self.user.password.clone(),
        };
        let next = match AuthClient::new(channel.clone()).authenticate(request).await {
            Ok(answer) => {
                let token = answer.into_inner().token.parse();
                State::Has(token.map_err(|_| Status::internal("a token that no header may have"))?)
            }
            Err(status) if status.message().contains("authentication is not enabled") => State::Off,
            Err(status) => return Err(status),
        };
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }
}

/// Shows a token.
pub(crate) fn show<T>(request: &mut Request<T>, token: Option<&Token>) {
    if let Some(token) = token {
        request.metadata_mut().insert(TOKEN, token.clone());
    }
}

/// Whether a member refused a call, before it did anything, for want of a token that it knows.
pub(crate) fn wants_token(status: &Status) -> bool {
    match status.code() {
        Code::Unauthenticated => status.message().contains("invalid auth token"),
        Code::InvalidArgument => {
            status.message().contains("user name is empty")
                || status.message().contains("revision of auth store is old")
        }
        _ => false,
    }
}
