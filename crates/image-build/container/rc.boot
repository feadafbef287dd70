#!/bin/sh
# The runtime has set up /proc, /dev, the network and the host name. What is left is what the cloud wants done once.
config=/run/nephos/config
if [ -r $config/meta-data ]; then
    # A list entry under public-keys, or a value in quotes: whatever looks like a key is one.
    mkdir -p -m 700 /root/.ssh
    grep -o -E '(ssh|ecdsa)-[a-z0-9-]+ [A-Za-z0-9+/=]+( [^" ]+)?' $config/meta-data $config/user-data 2>/dev/null |
        cut -d: -f2- > /root/.ssh/authorized_keys
fi
if [ ! -e /var/lib/nephos-user-data-ran ] && [ "$(head -c 2 $config/user-data 2>/dev/null)" = '#!' ]; then
    : > /var/lib/nephos-user-data-ran
    cp $config/user-data /run/user-data && chmod 700 /run/user-data && /run/user-data < /dev/null > /dev/console 2>&1 &
fi
exit 0
