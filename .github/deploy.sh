#!/usr/bin/env bash
# Bring an image to the cluster, ask it a real question, and put back what was there if it does not answer.
#   IMAGE      name@digest of the API's image      VERSION    model version that has to answer
#   OVERLAY    folder under k8s/overlays           JOBS_IMAGE image of the scheduled jobs; empty: the cluster's stays
# Exit code 0: deployed; 1: put back. The last line says which, and why.
set -euo pipefail
cd "$(dirname "$0")/.."
overlay=k8s/overlays/$OVERLAY

( cd "$overlay" && kustomize edit set image "churn-api=$IMAGE" "churn-api-triton=$IMAGE" ${JOBS_IMAGE:+"churn-jobs=$JOBS_IMAGE"} )
kubectl kustomize "$overlay" > deployed.yaml
namespace=$(sed -n 's/^  namespace: //p' deployed.yaml | head -1)
k() { kubectl --namespace "$namespace" "$@"; }

# Everything of the deployment but its volume: names, and what was applied last.
names() { k get deployment,service,configmap,cronjob,horizontalpodautoscaler,poddisruptionbudget,networkpolicy,serviceaccount --selector app.kubernetes.io/part-of=churn --output name | sort; }
there=$(names) || { echo "not deployed: the cluster does not say what is there"; exit 1; }
for it in $there; do
  echo ---
  k apply view-last-applied "$it" --output yaml || { echo "not deployed: $it can't be put back, as kubectl apply did not make it" >&2; exit 1; }
done > before.yaml

undo() {
  echo "$1; putting back what was there"
  if [ -n "$there" ] && k apply -f before.yaml && k rollout status deployment/churn-api --timeout=300s; then
    for it in $(comm -13 <(echo "$there") <(names)); do k delete "$it"; done # CronJobs, ConfigMaps and others that are new
    echo "not deployed: $1; the version before it answers again"
  else
    echo "not deployed: $1; and there was nothing to put back, or it does not start either"
  fi
  exit 1
}

k apply --dry-run=server -f deployed.yaml > /dev/null || { echo "not deployed: the cluster refused the manifests; what was there is as it was"; exit 1; }
k apply -f deployed.yaml || undo "the cluster took only a part of the manifests"
k rollout status deployment/churn-api --timeout=300s || undo "the new pods did not become ready"

coproc FORWARD { exec kubectl --namespace "$namespace" port-forward service/churn-api :80; }
trap 'kill "$FORWARD_PID" 2>/dev/null || true' EXIT
read -r -t 60 line <&"${FORWARD[0]}" || line=
port=$(sed -n 's/.*127\.0\.0\.1:\([0-9]*\).*/\1/p' <<< "$line")
[ -n "$port" ] || undo "no way to the service"
said=$(python3 .github/smoke.py "http://127.0.0.1:$port" "$VERSION") || undo "$said"
echo "$said"
echo "deployed: version $VERSION"
