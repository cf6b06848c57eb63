"""BERT WordPiece tokenization as CLIPA does it, and the four ways to shorten a caption."""

from clipa_eqx.tokenizer.reduce import Reduction as Reduction
from clipa_eqx.tokenizer.train import train_wordpiece as train_wordpiece
from clipa_eqx.tokenizer.vocabulary import write_vocab as write_vocab
from clipa_eqx.tokenizer.wordpiece import Encoded as Encoded
from clipa_eqx.tokenizer.wordpiece import Tokenizer as Tokenizer
from clipa_eqx.tokenizer.wordpiece import Tokens as Tokens
