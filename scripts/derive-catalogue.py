#!/usr/bin/env python3
"""Derive agent/catalogue/domains.txt from v2fly/domain-list-community.

usage: scripts/derive-catalogue.py DIR > agent/catalogue/domains.txt

DIR holds domains.tsv (list, match, pattern, attributes) and groups.tsv (group, member list), as exported from the lists.
Run it when the lists are renewed; builds use the committed result alone. An app id is its list's name, without a mark like
`-!cn`; a list of one purpose of a brand (its updates, its certificates) is of the brand's app, with a class of its own. The
class comes from the tables below, by list or by group: by what most of the bytes are. Streams to listen to are `other`, for
they need neither what video needs nor what a call does; shops and updates of software are `bulk`; what devices do by
themselves (time, names, certificates, push) is `system`. A domain in several lists belongs to an app rather than to a
category, and to the smaller list of two.

Regular expressions that stand for up to 100 names become those names. What is left out is told on standard error: the other
expressions, and lists of countries, top-level domains and private names. The export has no rules by keyword.
"""
import collections
import itertools
import os
import re
import re._constants as of
import re._parser
import sys

# By group, for every member list; later lines win.
GROUPS = [
    ("category-cas", "system"),
    ("category-media category-media-cn category-tech-media category-forums", "web"),
    ("category-entertainment category-entertainment-cn category-entertainment-ru category-porn mindgeek-porn "
     "category-media-ir", "video"),
    ("category-games category-games-cn category-games-!cn", "game"),
    ("category-social-media-!cn category-social-media-cn category-communication", "social"),
    ("category-netdisk-!cn category-netdisk-cn category-android-app-download", "bulk"),
    ("category-ntp category-doh", "system"),
    ("category-vpnservices category-remote-control", "other"),
]

# By list; these win over groups.
LISTS = {
    "video": "abc abema amc attwatchtv bamtech bbc brightcove cbs cctv dazn disney discoveryplus espn fox globo hbo hotstar "
             "hulu hunantv iqiyi jwplayer kick kodi mytvsuper nbcuniversal netflix niconico pbs plex plutotv polyv primevideo "
             "roku rumble rutube showtimeanytime sky sling starplus streamable ted tubi tvb twitch unext vimeo viu wistia "
             "youku youtube zeetv apple-tvplus category-emby kinopub hdrezka vokino cabletv litv catchplay mubi wasu bestv "
             "gitv now tver gimy olevod iyf category-media-cn category-media-ru-blocked category-porn category-anime anime "
             "aparat filimo hikvision blurams bilibili-cdn skyperfect category-entertainment category-entertainment-cn",
    "call": "agora category-stun talkatone teamspeak twilio webex zoom",
    "game": "2kgames 4399 activision activision-blizzard asobo bethesda blizzard chesscom category-enhance-gaming "
            "category-game-accelerator-cn category-games-!cn category-games-cn category-game-platforms-download ea epicgames "
            "fflogs forza gaijin garena gog hoyoverse mojang oculus origin playstation roblox rockstar steam take-two "
            "tencent-games trackernetwork unity xbox zynga aamgame nikke nintendo taptap wanmei taomee xiaoheihe",
    "web": "bahamut bangumi deviantart disqus ficbook goodreads imdb metacritic pixiv webnovel archiveofourown tmdb tvdb "
           "wallhaven subscene lastfm category-novel sonemic hoyolab gamersky tgbus vgtime duitang fqnovel yuewen qimao shuqi "
           "ciweimao manhuagui manhuaren mangadex copymanga kuaikan dedao intercom temp-mail mailcom protonmail keybase "
           "category-public-tracker category-pt sina zhihu 18comic picacg boylove moxing volmoe truyen-hentai dlsite gandi "
           "godaddy telekom vodafone hongkongpost",
    "other": "apple-music apple-podcasts bandcamp deezer kkbox kugou kuwo pocketcasts qingtingfm radiko soundcloud spotify "
             "taihe tencent-tme tidal ximalaya xiaoyuzhou lizhi musixmatch myradio category-vpnservices nordvpn tailscale tor "
             "torproject icloudprivaterelay category-remote-control vpngate softether zscaler",
    "social": "bytedance douyin facebook instagram kakao kuaishou line linkedin likee matrix messenger mixi momo ok pinterest "
              "quora reddit signal slack snap sohu telegram threads tiktok tumblr twitter vk viber whatsapp xiaohongshu yy "
              "bluesky clubhouse discord feishu dingtalk lark lark-global meta misskey misskey-universe nicegram dcard ptt "
              "category-communication category-social-media-!cn category-social-media-cn category-social-media-ir",
    "bulk": "115 aliyun-drive apple-update apkmirror apkpure category-container docker dropbox f-droid flathub flatpak "
            "google-play homebrew internet-archive itunes mega npmjs ookla-speedtest onedrive openspeedtest pikpak "
            "category-speedtest category-netdisk-cn snapcraft sourceforge terabox usersdrive wenshushu aptoide xunlei gemfury "
            "category-android-app-download",
    "system": "adguard amazontrust apple-pki category-cas category-ddns category-doh category-httpdns-cn category-ntp "
              "category-ntp-cn category-ntp-jp cloudns comodo connectivity-check cybertrust dnspod dynu googlefcm microsoft-pki noip "
              "symantec-pki trustasia verisign-pki category-ip-geo-detect test-ipv6",
}

# Lists of one purpose of a brand.
PURPOSES = {
    "adobe": "adobe-activation",
    "apple": "apple-dev apple-pki apple-update",
    "facebook": "facebook-dev",
    "huawei": "huawei-dev",
    "intel": "intel-dev",
    "microsoft": "microsoft-dev microsoft-pki",
    "symantec": "symantec-pki",
    "tencent": "tencent-dev",
    "verisign": "verisign-pki",
}

# Of everybody and nobody.
LEFT_OUT = re.compile(r"^(geolocation|tld)-|^private$|^test$")
# Most names that one expression may stand for.
MOST_NAMES = 100
APP = re.compile(r"^[a-z0-9-]{1,64}$")
DOMAIN = re.compile(r"^([a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}$")

HEADER = """\
# Which app and class a host name belongs to. Derived by scripts/derive-catalogue.py, never edited by hand, from
# https://github.com/v2fly/domain-list-community as of 2026-08-19, copyright 2018-2019 V2Ray, MIT licence: see LICENSE-v2fly.
#
# `:app class`, then its domains; `=` before one that holds for itself alone and not for the names below it.
"""


def rows(path):
    with open(path, encoding="utf8") as file:
        next(file)
        for line in file:
            yield line.rstrip("\n").split("\t")


class Endless(Exception):
    """The expression stands for more names than are worth it."""


def names(parsed):
    """Every text that a parsed regular expression matches; anchors match nothing."""
    parts = [list(itertools.islice(choices(*node), MOST_NAMES + 1)) for node in parsed]
    for picked in itertools.product(*parts):
        yield "".join(picked)


def choices(op, argument):
    if op is of.LITERAL:
        yield chr(argument)
    elif op is of.AT:
        yield ""
    elif op is of.IN and argument[0][0] is not of.NEGATE:
        for inner in argument:
            if inner[0] is of.RANGE:
                yield from map(chr, range(inner[1][0], inner[1][1] + 1))
            elif inner == (of.CATEGORY, of.CATEGORY_DIGIT):
                yield from "0123456789"
            elif inner[0] is of.LITERAL:
                yield chr(inner[1])
            else:
                raise Endless
    elif op is of.BRANCH:
        for branch in argument[1]:
            yield from names(branch)
    elif op is of.SUBPATTERN:
        yield from names(argument[3])
    elif op is of.MAX_REPEAT and argument[1] <= 4:
        least, most, inner = argument
        for times in range(least, most + 1):
            yield from names(list(inner) * times)
    else:
        raise Endless


def rules_of(match, pattern):
    """The rules, as domain and whether for itself alone, that a row stands for."""
    if match == "regex":
        below = pattern.startswith("(^|\\.)")
        if not (below or pattern.startswith("^")) or not pattern.endswith("$"):
            raise Endless
        expanded = set(itertools.islice(names(re._parser.parse(pattern.removeprefix("(^|\\.)"))), MOST_NAMES + 1))
        if len(expanded) > MOST_NAMES:
            raise Endless
        return [(name, not below) for name in expanded]
    return [(pattern, match == "full")]


def app_of(name):
    """The app of a list."""
    brands = [brand for brand, purposes in PURPOSES.items() if name in purposes.split()]
    return brands[0] if brands else name.removesuffix("-!cn")


def classes(groups):
    by_list = {}
    for names, kind in GROUPS:
        for group in names.split():
            by_list.update((member, kind) for member in groups[group])
    for kind, names in LISTS.items():
        by_list.update((name, kind) for name in names.split())
    return by_list


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    groups = collections.defaultdict(list)
    for group, member, *_ in rows(os.path.join(sys.argv[1], "groups.tsv")):
        groups[group].append(member)
    lists = collections.defaultdict(set)
    left_out = collections.Counter()
    for name, match, pattern, *_ in rows(os.path.join(sys.argv[1], "domains.tsv")):
        if LEFT_OUT.search(name):
            left_out[f"list {name}"] += 1
            continue
        try:
            rules = rules_of(match, pattern.lower() if match != "regex" else pattern)
        except Endless:
            left_out[f"expression of {name}: {pattern}"] += 1
            continue
        for rule in rules:
            if DOMAIN.match(rule[0]):
                lists[name].add(rule)
            else:
                left_out[f"no domain, of {name}: {rule[0]}"] += 1
    for what, count in sorted(left_out.items()):
        print(f"left out: {what} ({count})", file=sys.stderr)
    by_list = classes(groups)
    rank = {name: (name.startswith("category-"), len(rules), name) for name, rules in lists.items()}
    owner = {}
    for name in sorted(lists, key=rank.get):
        for rule in lists[name]:
            owner.setdefault(rule, (app_of(name), by_list.get(name, "web")))
    apps = collections.defaultdict(list)
    for rule, app in owner.items():
        # A domain's own rule is of no use where the same app has all names below it too.
        if not (rule[1] and owner.get((rule[0], False)) == app):
            apps[app].append(rule)
    sys.stdout.write(HEADER)
    for app, kind in sorted(apps):
        if not APP.match(app):
            sys.exit(f"{app} is no app id")
        print(f":{app} {kind}")
        for pattern, exact in sorted(apps[app, kind]):
            print(("=" if exact else "") + pattern)


main()
