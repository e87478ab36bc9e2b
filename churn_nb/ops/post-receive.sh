#!/bin/sh
# Written by `churn deploy-hook install`: a push to @branch@ is trained, judged and deployed.
home=@home@ repo=@repo@
unset GIT_DIR GIT_QUARANTINE_PATH
while read -r old new ref; do
  [ "$ref" = refs/heads/@branch@ ] || continue
  case $new in *[!0]*) ;; *) continue ;; esac # the branch was deleted
  release=$home/releases/$new
  [ -d "$release/.git" ] || git clone --quiet --no-checkout "$repo" "$release" || exit
  git -C "$release" checkout --quiet --detach "$new" || exit
  make --no-print-directory -C "$release" setup data < /dev/null || { echo "not deployed: $new could not be set up; what was there goes on"; exit 1; }
  ( cd "$release" && .venv/bin/churn deploy-hook run "$home" "$new" < /dev/null ) || exit # its notebooks; the loop reads the pushed refs
done
