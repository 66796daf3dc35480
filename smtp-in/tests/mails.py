"""Writes mails as Python's e-mail package does: one a line, and beside each what it says.

A line is: name, mail, text, subject, name of the sender; all but the first in hex.
"""

import base64
import email.header
import email.policy
import quopri
from email.message import EmailMessage
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText

RUSSIAN = "Привет, мир"
JAPANESE = "日本語のテキスト、カタカナ"
CHINESE = "你好，世界"
TAIWANESE = "你好，世界，這是一封信"
KOREAN = "안녕하세요 세계"

# The charset as the mail names it, Python's codec, and a text.
CHARSETS = [
    ("us-ascii", "ascii", "plain old text"),
    ("utf-8", "utf-8", "Grüße, €, 日本 and 😀"),
    ("utf-7", "utf-7", "Grüße + more=ü, 日本語! 😀"),
    ("utf-16", "utf-16", "Grüße 😀 日本"),
    ("utf-16", "utf-16-be", "Grüße 😀 日本"),
    ("utf-16le", "utf-16-le", "Grüße"),
    ("utf-16be", "utf-16-be", "Grüße"),
    ("iso-8859-1", "latin-1", "Grüße"),
    ("iso-8859-2", "iso-8859-2", "Zażółć gęślą jaźń"),
    ("iso-8859-5", "iso-8859-5", RUSSIAN),
    ("iso-8859-6", "iso-8859-6", "مرحبا بالعالم"),
    ("iso-8859-7", "iso-8859-7", "Καλημέρα κόσμε"),
    ("iso-8859-8-i", "iso-8859-8", "שלום עולם"),
    ("iso-8859-9", "iso-8859-9", "Günaydın dünya ğşİ"),
    ("iso-8859-13", "iso-8859-13", "Labrīt ąčęėįšųū"),
    ("iso-8859-15", "iso-8859-15", "5 € Œuvre"),
    ("windows-1250", "cp1250", "Zażółć gęślą jaźń"),
    ("windows-1251", "cp1251", RUSSIAN),
    ("cp1251", "cp1251", RUSSIAN),
    ("windows-1252", "cp1252", "“Grüße” – €"),
    ("windows-1253", "cp1253", "Καλημέρα κόσμε"),
    ("windows-1254", "cp1254", "Günaydın ğşİ"),
    ("windows-1255", "cp1255", "שלום עולם"),
    ("windows-1256", "cp1256", "مرحبا بالعالم پچژگ"),
    ("windows-1257", "cp1257", "Labrīt ąčęėįšųū"),
    ("windows-1258", "cp1258", "Viê\u0323t Nam"),
    ("koi8-r", "koi8-r", RUSSIAN),
    ("koi8-u", "koi8-u", "Привіт, світе ґєї"),
    ("ibm866", "cp866", RUSSIAN),
    ("cp850", "cp850", "Grüße"),
    ("macintosh", "mac-roman", "Grüße “x”"),
    ("x-mac-cyrillic", "mac-cyrillic", RUSSIAN),
    ("tis-620", "tis-620", "สวัสดีชาวโลก"),
    ("windows-874", "cp874", "สวัสดี “โลก”"),
    ("iso-2022-jp", "iso-2022-jp", JAPANESE),
    ("iso-2022-jp-2", "iso-2022-jp-2", JAPANESE),
    ("shift_jis", "shift_jis", JAPANESE),
    ("cp932", "cp932", JAPANESE + "①"),
    ("windows-31j", "cp932", JAPANESE + "①"),
    ("euc-jp", "euc-jp", JAPANESE),
    ("gb2312", "gb2312", CHINESE),
    # As Python names them.
    ("eucgb2312_cn", "gb2312", CHINESE),
    ("big5_tw", "big5", TAIWANESE),
    ("gbk", "gbk", TAIWANESE),
    ("cp936", "gbk", TAIWANESE),
    ("gb18030", "gb18030", TAIWANESE + " 😀"),
    ("big5", "big5", TAIWANESE),
    ("cp950", "cp950", TAIWANESE),
    ("big5-hkscs", "big5-hkscs", TAIWANESE),
    ("euc-kr", "euc-kr", KOREAN),
    ("ks_c_5601-1987", "cp949", KOREAN + " 똠방각하"),
    ("cp949", "cp949", KOREAN + " 똠방각하"),
    ("hz", "hz", CHINESE),
    ("iso-2022-kr", "iso-2022-kr", KOREAN),
    ("johab", "johab", KOREAN),
    ("utf-32", "utf-32", "Grüße"),
    ("cp437", "cp437", "Grüße"),
    ("cp037", "cp037", "hello"),
    ("mac-greek", "mac-greek", "Καλημέρα"),
    ("x-unknown", "utf-8", "Grüße"),
    ("x-unknown-ascii", "ascii", "hello"),
]


def say(name, mail, text, subject="", sender=""):
    mail = mail.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    print(name, *(part.hex() for part in (mail, text.encode(), subject.encode(), sender.encode())))


def in_charset(charset, codec, text):
    body = (text + "\r\nsecond line\r\n").encode(codec)
    head = f"MIME-Version: 1.0\nContent-Type: text/plain; charset=\"{charset}\"\n".encode()
    encoded = b"Content-Transfer-Encoding: base64\n\n" + base64.encodebytes(body)
    say(charset, head + encoded, text + "\nsecond line\n")


def words(charset, text):
    message = MIMEText("x\n", "plain", "us-ascii")
    message["Subject"] = email.header.Header(text, charset)
    message["From"] = f"{email.header.Header(text, charset).encode(maxlinelen=0)} <alice@example.net>"
    say(f"words-{charset}", message.as_bytes(), "x\n", text, text)


def structures():
    quoted = quopri.encodestring("Grüße = €\n".encode())
    head = b"Content-Type: text/plain;\n charset*0=ut;\n charset*1=f-8\nContent-Transfer-Encoding: quoted-printable\n\n"
    say("rfc2231-charset", head + quoted, "Grüße = €\n")
    head = b"Content-Type: text/plain; charset*=us-ascii'en'utf-8\nContent-Transfer-Encoding: quoted-printable\n\n"
    say("rfc2231-language", head + quoted, "Grüße = €\n")

    message = EmailMessage(policy=email.policy.SMTP)
    message["Subject"] = "Grüße aus der Ferne, und eine lange Zeile, die gefaltet werden muß, weil sie so lang ist"
    message["From"] = "Jürgen Müller <alice@example.net>"
    message.set_content("Grüße\n", cte="quoted-printable")
    message.add_alternative("<p>Grüße <b>HTML</b>", subtype="html")
    message.add_attachment(b"secret", maintype="application", subtype="pdf", filename="Grüße aus Köln, sehr lang " * 5)
    message.add_attachment("secret\n", subtype="plain", filename="résumé.txt")
    say("nested", bytes(message), "Grüße\n", message["Subject"], "Jürgen Müller")

    outer, inner = MIMEMultipart("mixed"), MIMEMultipart("related")
    inner.attach(MIMEText("<p>" + RUSSIAN, "html", "koi8-r"))
    outer.attach(MIMEText(JAPANESE, "plain", "iso-2022-jp"))
    outer.attach(inner)
    outer.attach(MIMEText("# three\n", "markdown", "utf-8"))
    say("mixed-charsets", outer.as_bytes(), f"{JAPANESE}\n\n{RUSSIAN}\n\n# three\n")

    message = EmailMessage()
    message.set_content("One line \nin two.\n From me\n>> quoted \n-- \nAlice\n", params={"format": "flowed"})
    say("flowed", bytes(message), "One line\nin two.\nFrom me\n>> quoted\n-- \nAlice\n")


for charset, codec, text in CHARSETS:
    in_charset(charset, codec, text)
for charset, text in [
    ("utf-8", "Grüße, " * 20 + "€"),
    ("iso-8859-1", "Grüße"),
    ("koi8-r", RUSSIAN),
    ("windows-1256", "مرحبا"),
    ("iso-2022-jp", JAPANESE),
    ("shift_jis", JAPANESE),
    ("euc-kr", KOREAN),
    ("gb18030", CHINESE),
]:
    words(charset, text)
structures()
