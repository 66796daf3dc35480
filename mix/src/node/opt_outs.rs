//! Who gets no more mail from this exit because he asked for that: noted for whoever has the token of his mailbox, listed and
//! undone for the operator, in a node that runs and in the database of one that does not.

use super::control::NodeControl;
use super::durable;
use crate::deliver::opt_out::{InvalidToken, Token, normalised};
use crate::path::{InvalidAddress, Mailbox};
use crate::store::opt_outs::{self, Kept};
use crate::store::{Db, StoreError};

/// Mailboxes in one part of the list: their letters are a few hundred at most, and an answer has room for a megabyte.
pub const LISTED: usize = 1000;

/// Why a mailbox was not opted out.
#[derive(Debug, thiserror::Error)]
pub enum NotOptedOut {
    /// It is none.
    #[error("the mailbox")]
    Address(#[from] InvalidAddress),
    /// Whoever asks has no mail for it.
    #[error(transparent)]
    Token(#[from] InvalidToken),
    /// There is no room for another.
    #[error(
        "{} mailboxes have opted out, which is the most that are kept: name domains in node.smtp.refusals, and remove their mailboxes",
        opt_outs::MOST
    )]
    Full,
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl NodeControl {
    /// Whether `token` is that of the mailbox `address`. Notes nothing.
    ///
    /// # Errors
    /// [`NotOptedOut::Address`], [`NotOptedOut::Token`].
    pub fn may_opt_out(&self, token: &str, address: &str) -> Result<Mailbox, NotOptedOut> {
        let mailbox = Mailbox::parse(address)?;
        self.0.opt_out_key.check(Token::parse(token)?, &mailbox)?;
        Ok(mailbox)
    }

    /// Notes on disk that the mailbox `address` gets no more mail, if `token` is its token.
    ///
    /// # Errors
    /// [`NotOptedOut`].
    pub async fn opt_out(&self, token: &str, address: &str) -> Result<(), NotOptedOut> {
        let mailbox = normalised(&self.may_opt_out(token, address)?);
        match durable::write(&self.0.db, move |tx| opt_outs::add(tx, &mailbox)).await? {
            Kept::New | Kept::Known => Ok(()),
            Kept::Full => Err(NotOptedOut::Full),
        }
    }

    /// As [`list`], of this node.
    ///
    /// # Errors
    /// What the database says.
    pub async fn opted_out(&self, after: String) -> Result<Vec<String>, StoreError> {
        list(&self.0.db, after).await
    }

    /// As [`undo`], in this node.
    ///
    /// # Errors
    /// What the database says.
    pub async fn undo_opt_out(&self, mailbox: &Mailbox) -> Result<bool, StoreError> {
        undo(&self.0.db, mailbox).await
    }
}

/// Those who have opted out behind `after`, in the order of their octets, [`LISTED`] at most.
///
/// # Errors
/// What the database says.
pub async fn list(db: &Db, after: String) -> Result<Vec<String>, StoreError> {
    durable::read(db, move |view| opt_outs::list(view, &after, LISTED)).await
}

/// Lets a mailbox have mail again; says whether it had opted out.
///
/// # Errors
/// What the database says.
pub async fn undo(db: &Db, mailbox: &Mailbox) -> Result<bool, StoreError> {
    let mailbox = normalised(mailbox);
    durable::write(db, move |tx| opt_outs::remove(tx, &mailbox)).await
}
