#!/usr/bin/env python3
"""Derive agent/catalogue/domains.txt from v2fly/domain-list-community.

usage: scripts/derive-catalogue.py DIR > agent/catalogue/domains.txt

DIR holds domains.tsv (list, match, pattern, attributes) and groups.tsv (group, member list), as exported from the lists.
Run it when the lists are renewed; builds use the committed result alone. An app id is its list's name; its class comes
from the table below, by list or by group. A domain in several lists belongs to an app rather than to a category, and to
the smaller list of two. Rules by regular expression, and lists of countries and top-level domains, are left out.
"""
import collections
import os
import re
import sys

# By group, for every member list; later lines win.
GROUPS = [
    ("category-media category-media-cn category-tech-media category-forums", "web"),
    ("category-entertainment category-entertainment-cn category-entertainment-ru category-porn mindgeek-porn "
     "category-media-ir", "video"),
    ("category-games category-games-cn category-games-!cn", "game"),
    ("category-social-media-!cn category-social-media-cn category-communication", "social"),
    ("category-netdisk-!cn category-netdisk-cn category-android-app-download", "bulk"),
    ("category-ntp category-doh", "system"),
]

# By list; these win over groups.
LISTS = {
    "video": "abc abema amc attwatchtv bamtech bbc brightcove cbs cctv dazn disney discoveryplus espn fox globo hbo hotstar "
             "hulu hunantv iqiyi jwplayer kick kodi mytvsuper nbcuniversal netflix niconico pbs plex plutotv polyv primevideo "
             "roku rumble rutube showtimeanytime sky sling starplus streamable ted tubi tvb twitch unext vimeo viu wistia "
             "youku youtube zeetv apple-tvplus category-emby kinopub hdrezka vokino cabletv litv catchplay mubi wasu bestv "
             "gitv now tver gimy olevod iyf category-media-cn category-media-ru-blocked category-porn category-anime anime "
             "aparat filimo hikvision blurams",
    "call": "agora category-stun talkatone teamspeak twilio webex zoom",
    "game": "2kgames 4399 activision activision-blizzard asobo bethesda blizzard chesscom category-enhance-gaming "
            "category-game-accelerator-cn category-games-!cn category-games-cn category-game-platforms-download ea epicgames "
            "fflogs forza gaijin garena gog hoyoverse mojang oculus origin playstation roblox rockstar steam take-two "
            "tencent-games trackernetwork unity xbox zynga aamgame nikke nintendo taptap wanmei",
    "web": "bahamut bangumi deviantart disqus ficbook goodreads imdb metacritic pixiv webnovel archiveofourown tmdb tvdb "
           "wallhaven subscene lastfm category-novel sonemic hoyolab gamersky tgbus vgtime duitang fqnovel yuewen qimao shuqi "
           "ciweimao manhuagui manhuaren mangadex copymanga kuaikan dedao intercom temp-mail mailcom protonmail keybase "
           "category-public-tracker category-pt sina zhihu",
    "other": "apple-music apple-podcasts bandcamp deezer kkbox kugou kuwo pocketcasts qingtingfm radiko soundcloud spotify "
             "taihe tencent-tme tidal ximalaya xiaoyuzhou lizhi musixmatch myradio category-vpnservices nordvpn tailscale tor "
             "torproject icloudprivaterelay",
    "social": "bytedance douyin facebook instagram kakao kuaishou line linkedin likee matrix messenger mixi momo ok pinterest "
              "quora reddit signal slack snap sohu telegram threads tiktok tumblr twitter vk viber whatsapp xiaohongshu yy "
              "bluesky clubhouse discord feishu dingtalk lark meta misskey nicegram",
    "bulk": "115 aliyun-drive apple-update apkmirror apkpure category-container docker dropbox f-droid flathub flatpak "
            "google-play homebrew internet-archive itunes mega npmjs ookla-speedtest onedrive openspeedtest pikpak "
            "category-speedtest category-netdisk-cn snapcraft sourceforge terabox usersdrive wenshushu",
    "system": "adguard amazontrust apple-pki category-cas category-ddns category-doh category-httpdns-cn category-ntp "
              "category-ntp-cn category-ntp-jp comodo connectivity-check digicert dnspod dynu entrust globalsign googlefcm "
              "google-trust-services identrust letsencrypt microsoft-pki noip sectigo verisign-pki category-ip-geo-detect "
              "test-ipv6",
}

# Of everybody and nobody.
LEFT_OUT = re.compile(r"^(geolocation|tld)-|^private$|^test$|-ads(-|$)")
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
    for name, match, pattern, *_ in rows(os.path.join(sys.argv[1], "domains.tsv")):
        pattern = pattern.lower()
        if match in ("suffix", "full") and not LEFT_OUT.search(name) and APP.match(name) and DOMAIN.match(pattern):
            lists[name].add((pattern, match == "full"))
    by_list = classes(groups)
    rank = {name: (name.startswith("category-"), len(rules), name) for name, rules in lists.items()}
    owner = {}
    for name in sorted(lists, key=rank.get):
        for rule in lists[name]:
            owner.setdefault(rule, name)
    apps = collections.defaultdict(list)
    for rule, name in owner.items():
        # A domain's own rule is of no use where the same app has all names below it too.
        if not (rule[1] and owner.get((rule[0], False)) == name):
            apps[name].append(rule)
    sys.stdout.write(HEADER)
    for name in sorted(apps):
        print(f":{name} {by_list.get(name, 'web')}")
        for pattern, exact in sorted(apps[name]):
            print(("=" if exact else "") + pattern)


main()
